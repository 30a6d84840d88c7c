/// Compiles a function once for each instruction set; the first argument chooses.
///
/// The body is plain Rust that the compiler vectorises. It never fuses or reorders floating-point operations by
/// itself, so every copy gives the same bits. Inner loops should run over fixed-size arrays.
macro_rules! per_isa {
    ($(
        $(#[$doc:meta])*
        $vis:vis fn $name:ident $(<$g:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block
    )*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$g: $bound>)? (isa: upg_codec::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$g: $bound>)? ($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 $(<$g: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 $(<$g: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }

            match isa {
                // SAFETY: an `Isa` is chosen only where the processor has it.
                #[cfg(target_arch = "x86_64")]
                upg_codec::Isa::Avx2 | upg_codec::Isa::AvxVnni => unsafe { avx2($($arg),*) },
                // SAFETY: likewise.
                #[cfg(target_arch = "x86_64")]
                upg_codec::Isa::Avx512 => unsafe { avx512($($arg),*) },
                _ => body($($arg),*),
            }
        }
    )*};
}

pub(crate) use per_isa;
