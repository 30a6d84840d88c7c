//! NVRTC, NVIDIA's run-time compiler, loaded when it is first needed.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs,
    path::{Path, PathBuf},
    ptr,
};

use libloading::Library;

/// Names under which systems keep it, newest first.
const NAMES: [&str; 6] = [
    "libnvrtc.so.13",
    "libnvrtc.so.12",
    "libnvrtc.so",
    "nvrtc64_130_0.dll",
    "nvrtc64_120_0.dll",
    "/usr/local/cuda/lib64/libnvrtc.so",
];

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;

/// The functions that are used here, and the library that keeps them alive.
pub(crate) struct Nvrtc {
    create: Create,
    compile: Compile,
    log_size: Size,
    log: Get,
    cubin_size: Size,
    cubin: Get,
    destroy: Destroy,
    version: Version,
    _library: Library,
    _builtins: Option<Library>,
}

/// A source file: its name and text.
pub(crate) type Source = (&'static str, &'static str);

impl Nvrtc {
    /// Opens the library: the file that `UPG_NVRTC` names, or the system's.
    ///
    /// # Errors
    /// Where there is none; the message says how to get it.
    pub(crate) fn open() -> Result<Self, String> {
        let candidates: Vec<PathBuf> = match env::var_os("UPG_NVRTC") {
            Some(path) => vec![path.into()],
            None => NAMES.iter().map(PathBuf::from).collect(),
        };
        Self::open_any(&candidates)
    }

    /// Opens the first of the candidates that is there.
    pub(crate) fn open_any(candidates: &[PathBuf]) -> Result<Self, String> {
        let missing = "no NVRTC library found: install the CUDA toolkit 12 or 13 (or `pip install nvidia-cuda-nvrtc`) and \
                       set UPG_NVRTC to its libnvrtc.so, or use --device cpu";
        let opened = candidates.iter().find_map(|path| {
            let builtins = builtins(path);
            // SAFETY: the library is NVIDIA's compiler, or what the user names as such: loading it runs its
            // initialisers.
            unsafe { Library::new(path) }.ok().map(|library| (library, builtins))
        });
        let (library, builtins) = opened.ok_or(missing)?;
        Self::of(library, builtins)
            .map_err(|error| format!("NVRTC is incomplete ({error}): install another version of it"))
    }

    fn of(library: Library, builtins: Option<Library>) -> Result<Self, libloading::Error> {
        // SAFETY: the types are those of nvrtc.h, which has not changed them since version 11.
        unsafe {
            Ok(Self {
                create: *library.get(b"nvrtcCreateProgram\0")?,
                compile: *library.get(b"nvrtcCompileProgram\0")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                log: *library.get(b"nvrtcGetProgramLog\0")?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize\0")?,
                cubin: *library.get(b"nvrtcGetCUBIN\0")?,
                destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                version: *library.get(b"nvrtcVersion\0")?,
                _library: library,
                _builtins: builtins,
            })
        }
    }

    /// Its version, such as `13.0`.
    pub(crate) fn version(&self) -> String {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are locals of the right type.
        unsafe { (self.version)(&mut major, &mut minor) };
        format!("{major}.{minor}")
    }

    /// Compiles `main`, which may include `headers` by name, to a cubin.
    ///
    /// # Errors
    /// The compiler's log.
    pub(crate) fn compile(
        &self,
        main: Source,
        headers: &[Source],
        options: &[String],
    ) -> Result<Vec<u8>, String> {
        let strings = |texts: Vec<&str>| texts.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        let own = |texts| strings(texts).map_err(|_| "a source or an option holds a zero byte".to_owned());
        let main_parts = own(vec![main.1, main.0])?;
        let names = own(headers.iter().map(|h| h.0).collect())?;
        let texts = own(headers.iter().map(|h| h.1).collect())?;
        let options = own(options.iter().map(String::as_str).collect())?;
        let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, texts, option_pointers) = (pointers(&names), pointers(&texts), pointers(&options));
        let mut program = ptr::null_mut();
        // SAFETY: every pointer is to a string that ends with a zero and outlives the call.
        let created = unsafe {
            (self.create)(
                &mut program,
                main_parts[0].as_ptr(),
                main_parts[1].as_ptr(),
                headers.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if created != 0 {
            return Err(format!("NVRTC cannot start (error {created}): install another version of it"));
        }
        // SAFETY: the program is alive and the options outlive the call.
        let compiled =
            unsafe { (self.compile)(program, option_pointers.len() as c_int, option_pointers.as_ptr()) };
        let result = if compiled == 0 {
            self.read(program, self.cubin_size, self.cubin)
        } else {
            let log = self.read(program, self.log_size, self.log).unwrap_or_default();
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
            Err(format!("NVRTC {} cannot compile the kernels: {log}", self.version()))
        };
        // SAFETY: the program is alive, and not used after this.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    fn read(&self, program: Program, size: Size, get: Get) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: the program is alive; the buffer is as long as the library asks for.
        let (sized, bytes, got) = unsafe {
            let sized = size(program, &mut len);
            let mut bytes = vec![0; len];
            let got = get(program, bytes.as_mut_ptr().cast());
            (sized, bytes, got)
        };
        if sized != 0 || got != 0 {
            return Err("NVRTC gives no result: install another version of it".to_owned());
        }
        Ok(bytes)
    }
}

/// The library of built-ins beside a named NVRTC, which looks for it where the system keeps libraries only: once it is
/// loaded, it is found. `None` where there is none; NVRTC then says what it misses.
fn builtins(nvrtc: &Path) -> Option<Library> {
    let folder = nvrtc.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    let names = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let mut files =
        names.filter(|file| file.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so."));
    // SAFETY: as for NVRTC itself.
    files.find_map(|file| unsafe { Library::new(file.path()) }.ok())
}
