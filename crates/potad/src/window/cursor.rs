//! A cursor: walks through the tree stretch by stretch, and knows what lies before it.

use crate::loose::{Bits, Loose};
use crate::pool::{NONE, Node, Rows};
use crate::probe::Probe;
use crate::tree::{ABSENT, DETAIL, HEAD, OCCUPIED, State, Tree, child_of, level1};
use crate::word::{ROW_ORDERS, low_bits};

/// Stretch of the tree in which a cursor stands: a row, or a child that is in one state as a whole,
/// which looks like a row in that state, whatever it spans.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    pub(super) first: u64,
    pub(super) last: u64,
    /// Granules in use, and those that allocations start at or that are absent, as in the tree.
    pub(super) used: u64,
    pub(super) head: u64,
    /// Granules that loose allocations start at.
    pub(super) loose: u64,
}

impl Stretch {
    /// Whether it spans more than a row.
    #[inline(always)]
    pub(super) fn is_wide(&self) -> bool {
        self.last - self.first != 63
    }

    /// Granules that an allocation goes on through.
    #[inline(always)]
    pub(super) fn going_on(&self) -> u64 {
        self.used & !self.head
    }

    /// Granules that make a window bad, but for those that start bad allocations further left.
    #[inline(always)]
    fn bad_starts(&self) -> u64 {
        self.head & !(self.used & self.loose)
    }
}

/// Reads the tree stretch by stretch.
pub(super) struct Reader<'a, P> {
    tree: &'a Tree<P>,
    loose: &'a Loose,
    /// Absolute granule number of position 0.
    origin: u64,
    /// The node of level 1 read last: its number, its line, its section, and the bits beside its rows.
    over: u64,
    line: usize,
    section: Node,
    pub(super) sheet: &'a Bits,
    /// Whether there is a row for each of its children.
    all_rows: bool,
}

/// Granules under a node of level 1, as a shift.
const OVER_SHIFT: u32 = 2 * ROW_ORDERS;

static NOTHING_LOOSE: Bits = [0; 64];

impl<'a, P: Probe> Reader<'a, P> {
    pub(super) fn new(tree: &'a Tree<P>, loose: &'a Loose, origin: u64) -> Self {
        let sheet = &NOTHING_LOOSE;
        let (over, line, section) = (u64::MAX, 0, NONE);
        Reader { tree, loose, origin, over, line, section, sheet, all_rows: false }
    }

    /// The stretch that a position lies in.
    #[inline(always)]
    fn read(&mut self, position: u64) -> Stretch {
        if position >> OVER_SHIFT != self.over
            && let Some(wide) = self.read_over(position)
        {
            return wide;
        }
        let (first, last) = (position & !63, position | 63);
        let child = child_of(position, 1);
        let line = self.tree.pool.line(self.line);
        let bit = |word: usize| line[word] >> child & 1 == 1;
        let loose = self.sheet[child as usize];
        if bit(DETAIL) {
            let (used, head) = self.tree.row(self.section, position);
            return Stretch { first, last, used, head, loose };
        }
        let (used, head) = match (bit(OCCUPIED), bit(ABSENT)) {
            (false, _) => (0, 0),
            (true, true) => (0, u64::MAX),
            (true, false) => (u64::MAX, bit(HEAD) as u64),
        };
        Stretch { first, last, used, head, loose }
    }

    /// Goes to the node of level 1 over a position; if there is none, the stretch that takes its place.
    #[inline(never)]
    fn read_over(&mut self, position: u64) -> Option<Stretch> {
        let (level, _) = self.tree.state_with_level(position);
        if level > 1 {
            let span = low_bits(ROW_ORDERS * level);
            let (first, last) = (position & !span, position | span);
            // Whether an allocation starts here is said of the first granule only.
            let (used, head) = match self.tree.state(first) {
                State::Free => (0, 0),
                State::Absent => (0, u64::MAX),
                State::Used { head } => (u64::MAX, head as u64),
            };
            let loose = head & used & self.loose.get(self.origin + first) as u64;
            return Some(Stretch { first, last, used, head, loose });
        }
        self.over = position >> OVER_SHIFT;
        self.section = self.tree.section(position);
        self.line = level1(self.section, position);
        self.sheet = self.loose.sheet(self.origin + position).unwrap_or(&NOTHING_LOOSE);
        self.all_rows = self.tree.pool.get(self.line, DETAIL) == u64::MAX;
        None
    }
}

/// A cursor's stretch, and what lies before it.
pub(super) struct Cursor<'a, P> {
    pub(super) reader: Reader<'a, P>,
    pub(super) at: Stretch,
    /// `U(first)`, counted from where the cursor set out; all counts wrap.
    pub(super) used: u64,
    /// Of the last stretch in which an allocation starts, which is where the one started that runs into
    /// this stretch, if one does: its first position, at which of its granules allocations start, and
    /// which of these are loose.
    run_first: u64,
    run_starts: u64,
    run_loose: u64,
    /// One more than the last bad granule before the stretch, 0 for none; perhaps 2^64.
    bad_end: u128,
}

impl<'a, P: Probe> Cursor<'a, P> {
    pub(super) fn new(mut reader: Reader<'a, P>, position: u64) -> Self {
        let at = reader.read(position);
        let mut cursor =
            Cursor { reader, at, used: 0, run_first: 0, run_starts: 0, run_loose: 0, bad_end: 0 };
        if at.going_on() & 1 == 1 {
            let Reader { tree, loose, origin, .. } = &cursor.reader;
            cursor.run_first = tree.first(at.first);
            cursor.run_starts = 1;
            cursor.run_loose = loose.get(origin + cursor.run_first) as u64;
        }
        cursor
    }

    /// Start of the allocation that runs into the stretch.
    #[inline(always)]
    fn run_start(&self) -> u64 {
        self.run_first + self.run_starts.ilog2() as u64
    }

    fn run_is_loose(&self) -> bool {
        self.run_loose >> self.run_starts.ilog2() & 1 == 1
    }

    /// Goes on until the stretch is that of a position, which must not lie before it. Only the cursor at
    /// a window's end keeps count of what is `BAD`.
    #[inline(always)]
    pub(super) fn advance<const BAD: bool>(&mut self, position: u64) {
        while self.at.last < position {
            if position - self.at.last > 64 && self.skip_rows(position) {
                continue;
            }
            if BAD {
                self.bad_end = self.bad_end(self.at.last);
            }
            self.used = self.used.wrapping_add(self.used_in_stretch());
            let starts = self.at.used & self.at.head;
            if starts != 0 {
                self.run_first = self.at.first;
                self.run_starts = starts;
                self.run_loose = starts & self.at.loose;
            }
            self.at = self.reader.read(self.at.last + 1);
        }
    }

    /// Whether it stands in a row under a node that has nothing but rows.
    #[inline(always)]
    pub(super) fn has_rows(&self) -> bool {
        self.reader.all_rows && self.at.last >> OVER_SHIFT == self.reader.over
    }

    /// These rows.
    #[inline(always)]
    pub(super) fn rows(&self) -> Rows<'a, P> {
        self.reader.tree.rows(self.reader.section, self.at.first)
    }

    /// Goes on to a row under the same node, of which these are the words, over rows that nothing runs
    /// into; those of the row before are where allocations start in it, and which are loose.
    #[inline(always)]
    pub(super) fn enter(&mut self, row: usize, used: u64, head: u64, starts: u64, loose: u64) {
        let first = self.at.first & !low_bits(OVER_SHIFT) | (row as u64) << ROW_ORDERS;
        if starts != 0 {
            (self.run_first, self.run_starts, self.run_loose) =
                (first - 64, starts, starts & loose);
        }
        let loose = self.reader.sheet[row];
        self.at = Stretch { first, last: first | 63, used, head, loose };
    }

    /// Goes over rows in which nothing is bad and nothing runs in from before, as far as they are under
    /// one node; whether there was any.
    #[inline(always)]
    fn skip_rows(&mut self, position: u64) -> bool {
        if !self.has_rows() {
            return false;
        }
        let sheet = self.reader.sheet;
        let from = child_of(self.at.first, 1) as usize;
        let here = position >> OVER_SHIFT == self.reader.over;
        let to = if here { child_of(position, 1) as usize } else { 63 };
        let rows = self.rows();
        let (mut row, mut starts) = (from, 0);
        let (mut used, mut head) = (self.at.used, self.at.head);
        while row < to {
            let bad = head & !(used & sheet[row]);
            if bad | used & !head & 1 != 0 {
                break;
            }
            self.used = self.used.wrapping_add(used.count_ones() as u64);
            starts = used & head;
            row += 1;
            (used, head) = rows.row(row);
        }
        if row != from {
            self.enter(row, used, head, starts, sheet[row - 1]);
        }
        row != from
    }

    /// Granules in use in all of the stretch.
    #[inline(always)]
    fn used_in_stretch(&self) -> u64 {
        if self.at.is_wide() && self.at.used != 0 {
            return (self.at.last - self.at.first).wrapping_add(1);
        }
        self.at.used.count_ones() as u64
    }

    /// One more than the last bad granule at or before a position in the stretch, 0 for none.
    #[inline(always)]
    pub(super) fn bad_end(&self, position: u64) -> u128 {
        let (on, bad) = (self.at.going_on(), self.at.bad_starts());
        if bad | on & 1 == 0 { self.bad_end } else { self.bad_end_here(position) }
    }

    #[inline(never)]
    fn bad_end_here(&self, position: u64) -> u128 {
        let runs_in = self.at.going_on() & 1 == 1;
        let run_is_bad = runs_in && !self.run_is_loose();
        if self.at.is_wide() {
            let bad = self.at.bad_starts() != 0 || run_is_bad;
            return if bad { position as u128 + 1 } else { self.bad_end };
        }
        let upto = (position & 63) as u32;
        let bad = self.at.bad_starts() & low_bits(upto + 1);
        // Of an allocation its last granule up to the position: all before the next stop.
        let end_of = |start: u32| {
            let stops = !self.at.going_on() & (u64::MAX << start << 1);
            stops.trailing_zeros().min(upto + 1)
        };
        let end = match bad.checked_ilog2() {
            Some(last) => end_of(last),
            None if run_is_bad => end_of(0),
            None => return self.bad_end,
        };
        self.at.first as u128 + end as u128
    }

    /// `U(s)` and `A(s)` of a position in the stretch.
    #[inline(always)]
    pub(super) fn before(&self, position: u64) -> (u64, u64) {
        if self.at.is_wide() {
            let inside = if self.at.used == 0 { 0 } else { position - self.at.first };
            let start = match (self.at.going_on() & 1, self.at.used) {
                (_, 0) => position,
                (0, _) => self.at.first,
                _ => self.run_start(),
            };
            return (self.used.wrapping_add(inside), start);
        }
        let at = (position & 63) as u32;
        let below = self.at.used & low_bits(at);
        let used_before = self.used.wrapping_add(below.count_ones() as u64);
        if self.at.going_on() >> at & 1 == 0 {
            return (used_before, position);
        }
        let start = match (below & self.at.head).checked_ilog2() {
            Some(start) => self.at.first | start as u64,
            None => self.run_start(),
        };
        (used_before, start)
    }

    /// `U(e)` for the `e` after a position in the stretch.
    #[inline(always)]
    pub(super) fn used_upto(&self, position: u64) -> u64 {
        if self.at.is_wide() {
            let inside = if self.at.used == 0 { 0 } else { position - self.at.first + 1 };
            return self.used.wrapping_add(inside);
        }
        let used = self.at.used & low_bits((position & 63) as u32 + 1);
        self.used.wrapping_add(used.count_ones() as u64)
    }

    /// `U(e)` and `B(e) - e` for the `e` after a position in the stretch.
    #[inline(always)]
    pub(super) fn upto(&self, position: u64) -> (u64, u64) {
        let used_upto = self.used_upto(position);
        if self.at.is_wide() {
            let beyond = self.at.used != 0;
            let end = if beyond { self.reader.tree.last(position) } else { position };
            return (used_upto, end - position);
        }
        let at = (position & 63) as u32;
        if self.at.used >> at & 1 == 0 {
            return (used_upto, 0);
        }
        let stops = !self.at.going_on() & (u64::MAX << at << 1);
        if stops != 0 {
            return (used_upto, (stops.trailing_zeros() - at - 1) as u64);
        }
        // Used to the end of the row, and perhaps beyond.
        let last = self.at.last;
        let beyond = self.reader.tree.goes_on_after_row(self.reader.section, last);
        let end = if beyond { self.reader.tree.last(last) } else { last };
        (used_upto, end - position)
    }
}
