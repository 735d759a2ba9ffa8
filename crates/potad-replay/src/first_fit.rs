//! Address-ordered first fit: the lowest address that will do.
//!
//! # Representation
//!
//! The free extents, maximal and in address order, are the nodes of an AVL tree in one flat array;
//! links are indices. Beside each link a node keeps that child's height and **best order**: the largest
//! naturally aligned block any extent below it has room for. That is what a request asks for, so a
//! search goes straight to the lowest extent that can serve it and never looks at one that cannot;
//! the length of the longest extent would not do, as a long extent may hold no aligned block.
//! The summaries stand beside the links, in the parent, so that an operation touches only the nodes on
//! its path. A node is 32 bytes: two to a cache line. An operation makes one node at most, whose place is
//! reserved before it begins.
//!
//! Nothing is kept about allocations: whoever frees says what.
//!
//! # Cost
//!
//! `alloc` and `free` take O(log n) nodes of n free extents: one way down and back for each change of
//! the tree, of which an allocation has at most two and a free at most two besides the search for the
//! neighbours.

use potad::{NoProbe, Probe};

use crate::allocator::{PAGES_MAX, PageAllocator};
use crate::error::{BuildError, CheckError};
use crate::fallible::{boxed, push};
use crate::figures::{Extent, has_run};
use crate::stop::{Interrupts, OutOfMemory, Stop};

const ALLOCATOR: &str = "first-fit";

/// No node.
const NIL: u32 = u32::MAX;

/// A child and what is known of the subtree below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Link {
    node: u32,
    /// 1 + the largest order an extent below has room for, 0 where there is none.
    best: u8,
    height: u8,
}

impl Link {
    const NIL: Link = Link { node: NIL, best: 0, height: 0 };
}

/// A free extent and its place in the tree. A node that is not in the tree is in the list of unused
/// ones, through `left.node`.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Node {
    start: u32,
    /// At least 1.
    pages: u32,
    left: Link,
    right: Link,
}

/// A cache line of nodes, so that which two share one does not depend on where the array lies.
#[repr(align(64))]
struct NodePair([Node; 2]);

const _: () = assert!(size_of::<NodePair>() == 64);

/// Where the tree and the list of unused nodes begin.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Header {
    root: Link,
    unused: u32,
}

/// Address-ordered first fit over free extents.
pub struct FirstFit<P = NoProbe> {
    nodes: Vec<NodePair>,
    /// Nodes there are: the last of `nodes` may be half used.
    node_count: u32,
    header: Box<Header>,
    pages: u64,
    probe: P,
}

impl FirstFit<NoProbe> {
    /// A memory of so many pages, all free.
    ///
    /// # Errors
    ///
    /// [`BuildError`] where the number of pages is out of range or the system refuses the metadata.
    pub fn new(pages: u64) -> Result<Self, BuildError> {
        FirstFit::with_probe(pages, NoProbe)
    }
}

impl<P: Probe> FirstFit<P> {
    /// As [`new`](FirstFit::new), with a probe that sees every access to metadata.
    ///
    /// # Errors
    ///
    /// As [`new`](FirstFit::new).
    pub fn with_probe(pages: u64, probe: P) -> Result<Self, BuildError> {
        if pages == 0 || pages > PAGES_MAX {
            return Err(BuildError::Pages { pages, max: PAGES_MAX });
        }
        let header = boxed(Header { root: Link::NIL, unused: NIL })?;
        let mut this = FirstFit { nodes: Vec::new(), node_count: 0, header, pages, probe };
        this.reserve_node()?;
        let root = this.insert(Link::NIL, Span { start: 0, pages: pages as u32 });
        this.set_root(root);
        Ok(this)
    }

    pub(crate) fn probe(&self) -> &P {
        &self.probe
    }

    // The ways to metadata: all reads and writes of nodes and header are here.

    #[inline(always)]
    fn load(&self, node: u32) -> Node {
        let node = &self.nodes[node as usize / 2].0[node as usize % 2];
        self.probe.touch(std::ptr::from_ref(node).addr(), size_of::<Node>());
        *node
    }

    #[inline(always)]
    fn store(&mut self, index: u32, value: Node) {
        let node = &mut self.nodes[index as usize / 2].0[index as usize % 2];
        self.probe.touch(std::ptr::from_ref(node).addr(), size_of::<Node>());
        *node = value;
    }

    #[inline(always)]
    fn root(&self) -> Link {
        self.probe.touch((&raw const self.header.root).addr(), size_of::<Link>());
        self.header.root
    }

    #[inline(always)]
    fn set_root(&mut self, root: Link) {
        self.probe.touch((&raw const self.header.root).addr(), size_of::<Link>());
        self.header.root = root;
    }

    /// Makes sure that there is a place for a node more.
    #[inline]
    fn reserve_node(&mut self) -> Result<(), OutOfMemory> {
        let is_full = self.node_count as usize == 2 * self.nodes.len();
        if is_full && self.header.unused == NIL && self.nodes.len() == self.nodes.capacity() {
            self.nodes.try_reserve(1)?;
        }
        Ok(())
    }

    /// Stores a node in a place no other uses, which has been reserved.
    fn store_new(&mut self, value: Node) -> u32 {
        self.probe.touch((&raw const self.header.unused).addr(), size_of::<u32>());
        let index = self.header.unused;
        if index == NIL {
            let index = self.node_count;
            self.node_count += 1;
            if index.is_multiple_of(2) {
                self.nodes.push(NodePair([value; 2]));
            }
            self.store(index, value);
            return index;
        }
        self.header.unused = self.load(index).left.node;
        self.store(index, value);
        index
    }

    fn discard(&mut self, index: u32) {
        self.probe.touch((&raw const self.header.unused).addr(), size_of::<u32>());
        let unused = Link { node: self.header.unused, ..Link::NIL };
        self.store(index, Node { start: 0, pages: 0, left: unused, right: Link::NIL });
        self.header.unused = index;
    }

    // The tree. Each function is given the link to a subtree and gives the link to what it became.

    /// Adds an extent that overlaps and adjoins none.
    fn insert(&mut self, tree: Link, span: Span) -> Link {
        if tree.node == NIL {
            let node =
                Node { start: span.start, pages: span.pages, left: Link::NIL, right: Link::NIL };
            let index = self.store_new(node);
            return node.link(index);
        }
        let mut node = self.load(tree.node);
        if span.start < node.start {
            node.left = self.insert(node.left, span);
        } else {
            node.right = self.insert(node.right, span);
        }
        self.balance(tree.node, node)
    }

    /// Changes the extent that starts at `start` to another in the same place between its neighbours.
    fn change(&mut self, tree: Link, start: u32, span: Span) -> Link {
        let mut node = self.load(tree.node);
        if start < node.start {
            node.left = self.change(node.left, start, span);
        } else if start > node.start {
            node.right = self.change(node.right, start, span);
        } else {
            node.start = span.start;
            node.pages = span.pages;
        }
        self.store(tree.node, node);
        node.link(tree.node)
    }

    /// Takes out the extent that starts at `start`.
    fn remove(&mut self, tree: Link, start: u32) -> Link {
        let mut node = self.load(tree.node);
        if start < node.start {
            node.left = self.remove(node.left, start);
        } else if start > node.start {
            node.right = self.remove(node.right, start);
        } else {
            return self.remove_top(tree.node, node);
        }
        self.balance(tree.node, node)
    }

    /// Takes out the top of a subtree.
    fn remove_top(&mut self, index: u32, node: Node) -> Link {
        self.discard(index);
        if node.left.node == NIL {
            return node.right;
        }
        if node.right.node == NIL {
            return node.left;
        }
        let (right, next) = self.take_first(node.right);
        let next_node = Node { left: node.left, right, ..self.load(next) };
        self.balance(next, next_node)
    }

    /// Unlinks the first node of a subtree that is not empty, and gives its index.
    fn take_first(&mut self, tree: Link) -> (Link, u32) {
        let mut node = self.load(tree.node);
        if node.left.node == NIL {
            return (node.right, tree.node);
        }
        let (left, first) = self.take_first(node.left);
        node.left = left;
        (self.balance(tree.node, node), first)
    }

    /// Stores a node one of whose children may have become two higher than the other, with the one or
    /// two rotations that mend it.
    fn balance(&mut self, index: u32, mut node: Node) -> Link {
        if node.left.height > node.right.height + 1 {
            let (up, mut top) = (node.left.node, self.load(node.left.node));
            if top.right.height > top.left.height {
                let (inner, mut middle) = (top.right.node, self.load(top.right.node));
                top.right = middle.left;
                self.store(up, top);
                node.left = middle.right;
                self.store(index, node);
                middle.left = top.link(up);
                middle.right = node.link(index);
                self.store(inner, middle);
                return middle.link(inner);
            }
            node.left = top.right;
            self.store(index, node);
            top.right = node.link(index);
            self.store(up, top);
            return top.link(up);
        }
        if node.right.height > node.left.height + 1 {
            let (up, mut top) = (node.right.node, self.load(node.right.node));
            if top.left.height > top.right.height {
                let (inner, mut middle) = (top.left.node, self.load(top.left.node));
                top.left = middle.right;
                self.store(up, top);
                node.right = middle.left;
                self.store(index, node);
                middle.right = top.link(up);
                middle.left = node.link(index);
                self.store(inner, middle);
                return middle.link(inner);
            }
            node.right = top.left;
            self.store(index, node);
            top.left = node.link(index);
            self.store(up, top);
            return top.link(up);
        }
        self.store(index, node);
        node.link(index)
    }

    /// Takes an aligned block out of the lowest extent of a subtree that has one: the subtree after
    /// it, the block's page, and the extent behind the block that is still to be added, if one is.
    fn take(&mut self, tree: Link, order: u32) -> (Link, u32, Option<Span>) {
        debug_assert!(u32::from(tree.best) > order);
        let mut node = self.load(tree.node);
        let (page, rest) = if u32::from(node.left.best) > order {
            let (left, page, rest) = self.take(node.left, order);
            node.left = left;
            (page, rest)
        } else if u32::from(node.own_best()) > order {
            let end = u64::from(node.start) + u64::from(node.pages);
            let page = u64::from(node.start).next_multiple_of(1 << order);
            let front = (page - u64::from(node.start)) as u32;
            let back_start = page + (1 << order);
            let back = (end - back_start) as u32;
            let page = page as u32;
            let behind = Span { start: back_start as u32, pages: back };
            match (front, back) {
                (0, 0) => return (self.remove_top(tree.node, node), page, None),
                (0, _) => (node.start, node.pages) = (behind.start, behind.pages),
                _ => node.pages = front,
            }
            (page, (front > 0 && back > 0).then_some(behind))
        } else {
            let (right, page, rest) = self.take(node.right, order);
            node.right = right;
            (page, rest)
        };
        (self.balance(tree.node, node), page, rest)
    }

    /// The last extent that starts before `page` and the first that starts at it or behind.
    fn neighbours(&self, page: u32) -> (Option<Span>, Option<Span>) {
        let (mut before, mut after) = (None, None);
        let mut at = self.root().node;
        while at != NIL {
            let node = self.load(at);
            let span = Span { start: node.start, pages: node.pages };
            if node.start < page {
                before = Some(span);
                at = node.right.node;
            } else {
                after = Some(span);
                at = node.left.node;
            }
        }
        (before, after)
    }

    /// Allocates an aligned block of 2^`order` pages at the lowest address there is one.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where there is no memory for metadata.
    #[inline]
    pub fn alloc(&mut self, order: u32) -> Result<Option<u32>, OutOfMemory> {
        let root = self.root();
        if u32::from(root.best) <= order {
            return Ok(None);
        }
        self.reserve_node()?;
        let (mut root, page, rest) = self.take(root, order);
        if let Some(rest) = rest {
            root = self.insert(root, rest);
        }
        self.set_root(root);
        Ok(Some(page))
    }

    /// Frees 2^`order` pages and merges them with what is free on either side.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] where there is no memory for metadata.
    ///
    /// # Panics
    ///
    /// Where they reach out of the memory or are free in part.
    #[inline]
    pub fn free(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        self.reserve_node()?;
        let end = u64::from(page) + (1 << order);
        let (before, after) = self.neighbours(page);
        assert!(
            end <= self.pages
                && before.is_none_or(|span| span.end() <= u64::from(page))
                && after.is_none_or(|span| end <= u64::from(span.start)),
            "free of page {page} at order {order}, between {before:?} and {after:?} of {} pages",
            self.pages
        );
        let freed = Span { start: page, pages: 1 << order };
        let joins_before = before.filter(|span| span.end() == u64::from(page));
        let joins_after = after.filter(|span| end == u64::from(span.start));
        let root = self.root();
        let root = match (joins_before, joins_after) {
            (None, None) => self.insert(root, freed),
            (Some(before), None) => self.change(
                root,
                before.start,
                Span { pages: before.pages + freed.pages, ..before },
            ),
            (None, Some(after)) => {
                self.change(root, after.start, Span { pages: freed.pages + after.pages, ..freed })
            }
            (Some(before), Some(after)) => {
                let root = self.remove(root, after.start);
                let pages = before.pages + freed.pages + after.pages;
                self.change(root, before.start, Span { pages, ..before })
            }
        };
        self.set_root(root);
        Ok(())
    }

    // Measurements.

    /// Calls `visit` for the extents with room for a block of `order`, in address order, until it
    /// says `true`; whether it did.
    fn any_extent(
        &self,
        tree: Link,
        order: u32,
        visit: &mut impl FnMut(Extent) -> Result<bool, Stop>,
    ) -> Result<bool, Stop> {
        if u32::from(tree.best) <= order {
            return Ok(false);
        }
        let node = self.load(tree.node);
        Ok(self.any_extent(node.left, order, visit)?
            || (u32::from(node.own_best()) > order
                && visit(Extent { start: node.start.into(), pages: node.pages.into() })?)
            || self.any_extent(node.right, order, visit)?)
    }

    /// Recounts a subtree: its true link and the nodes in it. `end` is where the extent before it ends.
    fn recount(
        &self,
        tree: Link,
        end: &mut Option<u64>,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<(Link, u32), CheckError> {
        if tree.node == NIL {
            return Ok((Link::NIL, 0));
        }
        interrupts.after(1)?;
        let node = self.load(tree.node);
        let (left, left_count) = self.recount(node.left, end, interrupts)?;
        let span = Span { start: node.start, pages: node.pages };
        if span.pages == 0
            || span.end() > self.pages
            || end.is_some_and(|end| end >= u64::from(span.start))
        {
            return Err(corrupt(format_args!(
                "{span:?} does not stand apart behind an extent that ends at {end:?}"
            )));
        }
        *end = Some(span.end());
        let (right, right_count) = self.recount(node.right, end, interrupts)?;
        if (left, right) != (node.left, node.right) {
            return Err(corrupt(format_args!(
                "{span:?} has {left:?}, {right:?} and says {:?}, {:?}",
                node.left, node.right
            )));
        }
        if left.height.abs_diff(right.height) > 1 {
            return Err(corrupt(format_args!("{span:?} is out of balance: {left:?}, {right:?}")));
        }
        Ok((node.link(tree.node), left_count + right_count + 1))
    }
}

impl<P: Probe> PageAllocator for FirstFit<P> {
    #[inline]
    fn alloc(&mut self, order: u32) -> Result<Option<u32>, OutOfMemory> {
        self.alloc(order)
    }

    #[inline]
    fn free(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        self.free(page, order)
    }

    #[inline]
    fn free_piece(&mut self, page: u32, order: u32) -> Result<(), OutOfMemory> {
        self.free(page, order)
    }

    fn pages(&self) -> u64 {
        self.pages
    }

    fn free_extents(&mut self, interrupts: &mut Interrupts<'_>) -> Result<Vec<Extent>, Stop> {
        let mut extents = Vec::new();
        self.any_extent(self.root(), 0, &mut |extent| {
            interrupts.after(1)?;
            push(&mut extents, extent)?;
            Ok(false)
        })?;
        Ok(extents)
    }

    /// A run at a multiple of 2^k begins with an aligned block of 2^k, or is shorter than that.
    fn can_run(
        &mut self,
        pages: u64,
        align: u64,
        interrupts: &mut Interrupts<'_>,
    ) -> Result<bool, Stop> {
        let order = align.trailing_zeros().min(pages.ilog2());
        self.any_extent(self.root(), order, &mut |extent| {
            interrupts.after(1)?;
            Ok(has_run(extent, pages, align))
        })
    }

    fn metadata_bytes(&self) -> u64 {
        u64::from(self.node_count) * size_of::<Node>() as u64 + size_of::<Header>() as u64
    }

    fn check(&self, interrupts: &mut Interrupts<'_>) -> Result<(), CheckError> {
        let (root, count) = self.recount(self.header.root, &mut None, interrupts)?;
        if root != self.header.root {
            return Err(corrupt(format_args!(
                "the root is {root:?}, the header says {:?}",
                self.header.root
            )));
        }
        let mut unused = 0;
        let mut at = self.header.unused;
        while at != NIL && unused <= self.node_count {
            unused += 1;
            interrupts.after(1)?;
            at = self.load(at).left.node;
        }
        if count + unused != self.node_count {
            let all = self.node_count;
            return Err(corrupt(format_args!(
                "{count} nodes in the tree and {unused} unused are not {all}"
            )));
        }
        Ok(())
    }
}

fn corrupt(what: std::fmt::Arguments<'_>) -> CheckError {
    CheckError::corrupt(ALLOCATOR, what)
}

/// An extent in page numbers.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    pages: u32,
}

impl Span {
    fn end(self) -> u64 {
        u64::from(self.start) + u64::from(self.pages)
    }
}

impl Node {
    /// 1 + the largest order of an aligned block the extent has room for.
    #[inline]
    fn own_best(&self) -> u8 {
        let start = u64::from(self.start);
        let end = start + u64::from(self.pages);
        // The largest block that fits unaligned; its half always fits aligned, itself perhaps.
        let order = self.pages.ilog2();
        let fits = |order: u32| start.next_multiple_of(1 << order) + (1 << order) <= end;
        if fits(order) { order as u8 + 1 } else { order as u8 }
    }

    /// The link to this node at `index`.
    #[inline]
    fn link(&self, index: u32) -> Link {
        Link {
            node: index,
            best: self.own_best().max(self.left.best).max(self.right.best),
            height: 1 + self.left.height.max(self.right.height),
        }
    }
}
