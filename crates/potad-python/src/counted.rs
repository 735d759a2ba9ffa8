//! A counted pointer that says when there is no memory for it. `std::sync::Arc` would end the process.

use std::alloc::{Layout, alloc, dealloc};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering, fence};

struct Inner<T> {
    strong: AtomicUsize,
    /// Weak pointers, and one for all strong ones together.
    weak: AtomicUsize,
    value: T,
}

/// A pointer that keeps its value alive.
pub struct Counted<T> {
    inner: NonNull<Inner<T>>,
    owns: PhantomData<Inner<T>>,
}

/// A pointer that does not keep its value alive.
pub struct Weak<T> {
    inner: NonNull<Inner<T>>,
}

// SAFETY: as `std::sync::Arc`: all threads share the value, and any of them may drop it.
unsafe impl<T: Send + Sync> Send for Counted<T> {}
unsafe impl<T: Send + Sync> Sync for Counted<T> {}
unsafe impl<T: Send + Sync> Send for Weak<T> {}
unsafe impl<T: Send + Sync> Sync for Weak<T> {}

impl<T> Counted<T> {
    /// Puts a value on the heap; gives it back if there is no memory.
    pub fn new(value: T) -> Result<Self, T> {
        // SAFETY: the layout has bytes, those of the two counters.
        let memory = unsafe { alloc(Layout::new::<Inner<T>>()) };
        let Some(inner) = NonNull::new(memory.cast::<Inner<T>>()) else { return Err(value) };
        let (strong, weak) = (AtomicUsize::new(1), AtomicUsize::new(1));
        // SAFETY: this memory was just allocated for it.
        unsafe { inner.write(Inner { strong, weak, value }) };
        Ok(Counted { inner, owns: PhantomData })
    }

    fn inner(&self) -> &Inner<T> {
        // SAFETY: the memory lives as long as there is a pointer to it.
        unsafe { self.inner.as_ref() }
    }

    /// A pointer to the same value that does not keep it alive.
    pub fn weak(&self) -> Weak<T> {
        self.inner().weak.fetch_add(1, Ordering::Relaxed);
        Weak { inner: self.inner }
    }

    /// Whether this is the only pointer that keeps the value alive.
    pub fn is_alone(&self) -> bool {
        self.inner().strong.load(Ordering::Acquire) == 1
    }

    /// Whether both point to one value.
    pub fn is_same(&self, other: &Self) -> bool {
        self.inner == other.inner
    }
}

impl<T> Clone for Counted<T> {
    fn clone(&self) -> Self {
        self.inner().strong.fetch_add(1, Ordering::Relaxed);
        Counted { inner: self.inner, owns: PhantomData }
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner().value
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        if self.inner().strong.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // What all strong pointers hold together is given up after the value, also if its drop panics.
        let _weak = Weak { inner: self.inner };
        // SAFETY: this was the last strong pointer, and no weak one becomes strong any more.
        unsafe { ptr::drop_in_place(&raw mut (*self.inner.as_ptr()).value) };
    }
}

impl<T> Weak<T> {
    /// A pointer that keeps the value alive, if the value still is there.
    pub fn upgrade(&self) -> Option<Counted<T>> {
        // SAFETY: the memory lives as long as there is a pointer to it. Only the counter is looked at,
        // since the value may be gone.
        let strong = unsafe { &(*self.inner.as_ptr()).strong };
        let one_more = |count| if count == 0 { None } else { Some(count + 1) };
        strong.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more).ok()?;
        Some(Counted { inner: self.inner, owns: PhantomData })
    }

    /// Whether the value is gone.
    pub fn is_dead(&self) -> bool {
        // SAFETY: as above.
        unsafe { &(*self.inner.as_ptr()).strong }.load(Ordering::Relaxed) == 0
    }
}

impl<T> Drop for Weak<T> {
    fn drop(&mut self) {
        // SAFETY: as above.
        let weak = unsafe { &(*self.inner.as_ptr()).weak };
        if weak.fetch_sub(1, Ordering::Release) == 1 {
            fence(Ordering::Acquire);
            // SAFETY: it was allocated with this layout, the value is gone, and this was the last pointer.
            unsafe { dealloc(self.inner.as_ptr().cast(), Layout::new::<Inner<T>>()) };
        }
    }
}
