//! A thin layer over the driver's interface: one card, one stream, memory that frees itself, errors with a remedy.

use std::{
    cell::Cell,
    ffi::{CStr, c_void},
    marker::PhantomData,
    ops::Range,
    panic, ptr,
    sync::OnceLock,
};

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUdeviceptr, CUfunction, CUresult};
use upg_pdvm::MachineError;

/// Turns a driver's answer into an error that says what was being done.
pub(crate) fn check(result: CUresult, doing: &str) -> Result<(), MachineError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: `text` receives a pointer to a static string, or stays null for a code that the driver does not know.
    let known =
        unsafe { sys::cuGetErrorString(result, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: the driver's strings are static and end with a zero.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    let remedy = match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "free memory of the card, load the model with a smaller context, or use --device cpu"
        }
        CUresult::CUDA_ERROR_NO_DEVICE => "see that nvidia-smi lists a card, or use --device cpu",
        _ => "load the model again, or use --device cpu",
    };
    Err(MachineError::Device(format!("{doing}: the CUDA driver says {text:?} ({result:?}): {remedy}")))
}

/// Whether the driver is there and speaks to at least one card; asked once.
pub(crate) fn available() -> Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER.get_or_init(probe).clone()
}

fn probe() -> Result<(), String> {
    let missing = || {
        "no CUDA driver found: install NVIDIA's driver (570 or newer is best), or use --device cpu".to_owned()
    };
    // SAFETY: opens the driver's library, which is meant for that.
    if !unsafe { sys::is_culib_present() } {
        return Err(missing());
    }
    // The binding panics where a driver from before 2022 lacks a function.
    let init = panic::catch_unwind(|| {
        // SAFETY: the library is there; cuInit may be called any number of times.
        check(unsafe { sys::cuInit(0) }, "starting CUDA")
    });
    init.map_err(|_| missing())?.map_err(|error| error.to_string())
}

/// A card with its primary context, and the stream that all work goes to.
pub(crate) struct Device {
    context: sys::CUcontext,
    device: sys::CUdevice,
    stream: sys::CUstream,
    /// Kernels that it was given.
    launches: Cell<u64>,
}

// SAFETY: contexts and streams may be used from any thread; `Device::enter` makes the context current first.
unsafe impl Send for Device {}

impl Device {
    /// Opens the first card.
    pub(crate) fn open() -> Result<Self, MachineError> {
        available().map_err(MachineError::Device)?;
        let (mut device, mut context, mut stream) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: all pointers are to locals of the right type; the driver has been started.
        unsafe {
            check(sys::cuDeviceGet(&mut device, 0), "finding a card")?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), "opening the card")?;
            check(sys::cuCtxSetCurrent(context), "opening the card")?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check(sys::cuStreamCreate(&mut stream, flags), "making a stream")?;
        }
        Ok(Self { context, device, stream, launches: Cell::new(0) })
    }

    /// Makes the card the calling thread's.
    pub(crate) fn enter(&self) -> Result<(), MachineError> {
        // SAFETY: the context is retained until drop.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "entering the card's context")
    }

    /// One of the card's numbers.
    pub(crate) fn attribute(&self, attribute: Attribute) -> Result<usize, MachineError> {
        let mut value = 0;
        // SAFETY: `value` is a local of the right type.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) }, "asking the card")?;
        Ok(value.max(0) as usize)
    }

    /// Its compute capability, 90 for 9.0.
    pub(crate) fn capability(&self) -> Result<usize, MachineError> {
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok(10 * major + self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?)
    }

    /// Its name.
    pub(crate) fn name(&self) -> Result<String, MachineError> {
        let mut name = [0; 256];
        // SAFETY: the buffer is as long as it is said to be; the driver ends the name with a zero.
        unsafe {
            check(
                sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, self.device),
                "asking the card",
            )?;
            Ok(CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
        }
    }

    /// Free bytes of its memory.
    pub(crate) fn free(&self) -> Result<usize, MachineError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are locals of the right type.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "asking the card")?;
        Ok(free)
    }

    /// The stream.
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Counts kernels that it is given.
    pub(crate) fn count(&self, kernels: usize) {
        self.launches.set(self.launches.get() + kernels as u64);
    }

    /// Kernels that it was given.
    pub(crate) fn launches(&self) -> u64 {
        self.launches.get()
    }

    /// Waits for all work of the stream.
    pub(crate) fn synchronize(&self) -> Result<(), MachineError> {
        // SAFETY: the stream is alive.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "running the program")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nothing uses the stream or the context's share after this. An error has nobody to go to.
        unsafe {
            sys::cuCtxSetCurrent(self.context);
            sys::cuStreamDestroy_v2(self.stream);
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Memory of the card, zero at first. Lives within the [`Device`] that was current when it was made.
pub(crate) struct Buffer {
    at: CUdeviceptr,
    len: usize,
}

impl Buffer {
    /// `len` bytes, all zero.
    pub(crate) fn zeroed(len: usize) -> Result<Self, MachineError> {
        let (mut at, doing) = (0, format!("taking {len} bytes of the card's memory"));
        // SAFETY: `at` is a local; the driver refuses a size that it cannot give.
        check(unsafe { sys::cuMemAlloc_v2(&mut at, len.max(1)) }, &doing)?;
        let buffer = Self { at, len: len.max(1) };
        // SAFETY: the memory is ours and that long.
        check(unsafe { sys::cuMemsetD8_v2(at, 0, buffer.len) }, "clearing memory")?;
        Ok(buffer)
    }

    /// The given numbers.
    pub(crate) fn of<T: Pod>(data: &[T]) -> Result<Self, MachineError> {
        Self::of_bytes(bytemuck::cast_slice(data))
    }

    /// The given bytes.
    pub(crate) fn of_bytes(data: &[u8]) -> Result<Self, MachineError> {
        let buffer = Self::zeroed(data.len())?;
        // SAFETY: the buffer is as long as the data; the call returns when the data has been read.
        let copied = unsafe { sys::cuMemcpyHtoD_v2(buffer.at, data.as_ptr().cast(), data.len()) };
        check(copied, "copying to the card")?;
        Ok(buffer)
    }

    /// Its address.
    pub(crate) fn at(&self) -> CUdeviceptr {
        self.at
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Clears it.
    pub(crate) fn clear(&self) -> Result<(), MachineError> {
        // SAFETY: the memory is ours and that long.
        check(unsafe { sys::cuMemsetD8_v2(self.at, 0, self.len) }, "clearing memory")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the memory is ours; the driver waits for work that uses it.
        unsafe { sys::cuMemFree_v2(self.at) };
    }
}

/// Page-locked memory of the host, from and to which the card copies by itself.
pub(crate) struct Pinned<T: Pod> {
    at: *mut T,
    len: usize,
    numbers: PhantomData<T>,
}

// SAFETY: it owns its memory as a Vec does.
unsafe impl<T: Pod + Send> Send for Pinned<T> {}

impl<T: Pod> Pinned<T> {
    /// `len` numbers, all zero.
    pub(crate) fn zeroed(len: usize) -> Result<Self, MachineError> {
        let mut at = ptr::null_mut::<c_void>();
        let bytes = len.max(1) * size_of::<T>();
        // SAFETY: `at` is a local; the memory is written before it is read.
        unsafe {
            check(sys::cuMemAllocHost_v2(&mut at, bytes), "taking page-locked memory")?;
            ptr::write_bytes(at.cast::<u8>(), 0, bytes);
        }
        Ok(Self { at: at.cast(), len, numbers: PhantomData })
    }

    /// Starts copying some of the numbers to address `to` of the card; they may be written again once the device has
    /// been synchronised.
    pub(crate) fn send(
        &self,
        device: &Device,
        range: Range<usize>,
        to: CUdeviceptr,
    ) -> Result<(), MachineError> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let bytes = range.len() * size_of::<T>();
        // SAFETY: the range is ours; the caller owns as much at `to`, and waits before either side goes.
        let copied =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, self.at.add(range.start).cast(), bytes, device.stream()) };
        check(copied, "copying to the card")
    }

    /// Starts copying from address `from` of the card to some of the numbers; they may be read once the device has been
    /// synchronised.
    pub(crate) fn fetch(
        &mut self,
        device: &Device,
        range: Range<usize>,
        from: CUdeviceptr,
    ) -> Result<(), MachineError> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let bytes = range.len() * size_of::<T>();
        // SAFETY: as above, the other way.
        let copied = unsafe {
            sys::cuMemcpyDtoHAsync_v2(self.at.add(range.start).cast(), from, bytes, device.stream())
        };
        check(copied, "copying from the card")
    }

    /// The numbers. No copy to or from them may be under way.
    pub(crate) fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` initialised numbers that we own.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl<T: Pod> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: the memory is ours.
        unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}

/// Compiled kernels on the card.
pub(crate) struct Module(sys::CUmodule);

// SAFETY: a module may be used from any thread in which its context is current.
unsafe impl Send for Module {}

impl Module {
    /// Loads a cubin.
    pub(crate) fn load(cubin: &[u8]) -> Result<Self, MachineError> {
        let mut module = ptr::null_mut();
        // SAFETY: the cubin's header says how long it is; it comes from the compiler, its hash checked.
        check(unsafe { sys::cuModuleLoadData(&mut module, cubin.as_ptr().cast()) }, "loading the kernels")?;
        Ok(Self(module))
    }

    /// A kernel of the module, which outlives it, with `shared` bytes of dynamic shared memory allowed.
    pub(crate) fn kernel(&self, name: &CStr, shared: usize) -> Result<Kernel, MachineError> {
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a zero.
        unsafe {
            check(sys::cuModuleGetFunction(&mut function, self.0, name.as_ptr()), "finding a kernel")?;
            let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            check(sys::cuFuncSetAttribute(function, most, shared as i32), "reserving shared memory")?;
        }
        Ok(Kernel(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: whoever drops the module has waited for its kernels.
        unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// A kernel.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(pub(crate) CUfunction);

// SAFETY: as for its module.
unsafe impl Send for Kernel {}

impl Kernel {
    /// Starts the kernel.
    ///
    /// # Safety
    /// `arguments` are what the kernel takes, and what they name outlives its run.
    pub(crate) unsafe fn launch(
        &self,
        device: &Device,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        arguments: &mut [*mut c_void],
    ) -> Result<(), MachineError> {
        device.count(1);
        let [x, y, z] = grid.map(|n| n as u32);
        // SAFETY: the caller's; the launch copies the arguments.
        let launched = unsafe {
            sys::cuLaunchKernel(
                self.0,
                x,
                y,
                z,
                threads as u32,
                1,
                1,
                shared as u32,
                device.stream(),
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        check(launched, "starting a kernel")
    }

    /// Blocks of it that one multiprocessor runs at a time.
    pub(crate) fn resident(&self, threads: usize, shared: usize) -> Result<usize, MachineError> {
        let mut blocks = 0;
        // SAFETY: `blocks` is a local; the kernel is loaded.
        let asked = unsafe {
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, self.0, threads as i32, shared)
        };
        check(asked, "asking how many blocks fit")?;
        Ok(blocks.max(0) as usize)
    }
}
