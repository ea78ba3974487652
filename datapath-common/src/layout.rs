//! Macros that make a struct a layout type.

/// Marks a `#[repr(C)]` struct as plain data without padding, for the listed
/// instantiations, and asserts size and absence of padding at compile time.
///
/// `pod!(Type<Ip4> = 16 { field: u32, … })` names every field's type again so
/// that the sum of the fields can be compared with the size of the whole.
macro_rules! pod {
    ($($ty:ty = $size:literal [$($field:ty),+ $(,)?]);+ $(;)?) => {$(
        // SAFETY: `#[repr(C)]`, every field is plain data (checked by the
        // bound below), and the assertion shows that there is no padding.
        unsafe impl bytemuck::Zeroable for $ty {}
        // SAFETY: as above; every bit pattern of every field is valid.
        unsafe impl bytemuck::Pod for $ty {}
        #[cfg(feature = "user")]
        // SAFETY: a `bytemuck::Pod` type fulfils all that `aya::Pod` asks.
        unsafe impl aya::Pod for $ty {}
        const _: () = {
            const fn plain<T: bytemuck::Pod>() -> usize { size_of::<T>() }
            assert!(size_of::<$ty>() == $size);
            assert!(0 $(+ plain::<$field>())+ == $size, "padding");
            assert!(align_of::<$ty>() <= 8);
        };
    )+};
}
