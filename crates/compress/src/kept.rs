use std::{fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use upg_format::Header;

use crate::{CompressError, Plan};

/// The plan of an unfinished file, `OUT.part.plan`, where it took long to make: a run that goes on does not measure again.
pub(crate) struct KeptPlan {
    path: PathBuf,
    /// What the file is to become.
    identity: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    identity: String,
    plan: Value,
}

impl KeptPlan {
    /// Of the file `out`, which will have this header.
    pub(crate) fn new(out: &std::path::Path, header: &Header) -> Self {
        let mut path = out.as_os_str().to_owned();
        path.push(".part.plan");
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?}", header.config).as_bytes());
        hasher.update(format!("{:?}", header.provenance).as_bytes());
        Self { path: path.into(), identity: hasher.finalize().to_hex().to_string() }
    }

    /// The plan as JSON; `None` where there is none of this very file.
    pub(crate) fn read(&self) -> Option<String> {
        let contents: Contents = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        (contents.identity == self.identity).then(|| contents.plan.to_string())
    }

    pub(crate) fn write(&self, plan: &Plan) -> Result<(), CompressError> {
        let plan = serde_json::to_value(plan).unwrap_or_default();
        let contents = Contents { identity: self.identity.clone(), plan };
        let text = serde_json::to_string_pretty(&contents).unwrap_or_default();
        fs::write(&self.path, text).map_err(|source| self.error(source))
    }

    pub(crate) fn remove(&self) -> Result<(), CompressError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.error(source)),
            _ => Ok(()),
        }
    }

    fn error(&self, source: io::Error) -> CompressError {
        CompressError::Kept { path: self.path.clone(), source }
    }
}
