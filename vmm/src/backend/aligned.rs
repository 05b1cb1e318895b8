//! Memory at an aligned address, which direct access to files wants.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

/// A zeroed buffer at an aligned address.
pub struct Aligned {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory alone.
unsafe impl Send for Aligned {}

impl Aligned {
    /// `size` bytes, not zero, at a multiple of `align`, a power of two.
    #[must_use]
    pub fn new(size: usize, align: usize) -> Self {
        let layout = Layout::from_size_align(size, align).unwrap_or(Layout::new::<[u64; 512]>());
        // SAFETY: the layout has a size above zero.
        let pointer = NonNull::new(unsafe { alloc(layout) });
        let pointer = pointer.unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        // SAFETY: just allocated with this size.
        unsafe { pointer.write_bytes(0, layout.size()) };
        Self { pointer, layout }
    }

    /// Its address, for system calls.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// Its content.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: allocated, initialised, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.layout.size()) }
    }

    /// Its content, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as `bytes`, borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) };
    }
}
