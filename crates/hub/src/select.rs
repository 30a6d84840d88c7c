//! Which files of a repository make a model.

use std::path::Path;

use upg_checkpoint::{INDEX_FILE, SIDE_FILES, SINGLE_FILE, shard_names};

use crate::{Hub, HubError, RemoteFile, Repo, Watch, client::Request};

/// The most bytes of an index of shards.
const INDEX_CAP: u64 = 64 << 20;

/// What a repository holds, as far as it can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// One file that is all of it: `.upg` or `.gguf`.
    File(String),
    /// Safetensors: small files, and whether an index lists several shards.
    Folder { sharded: bool },
}

/// Chooses: the only `.upg` file; or the safetensors; or the only `.gguf` file.
pub(crate) fn model(repo: &Repo) -> Result<Model, HubError> {
    let ending =
        |end: &str| repo.paths().filter(|path| path.to_ascii_lowercase().ends_with(end)).collect::<Vec<_>>();
    let (upg, gguf) = (ending(".upg"), ending(".gguf"));
    let folder = repo.has("config.json").then(|| match (repo.has(SINGLE_FILE), repo.has(INDEX_FILE)) {
        (true, _) => Some(Model::Folder { sharded: false }),
        (_, true) => Some(Model::Folder { sharded: true }),
        _ => None,
    });
    let why = match (&*upg, folder.flatten(), &*gguf) {
        ([only], ..) => return Ok(Model::File((*only).to_owned())),
        ([], Some(folder), _) => return Ok(folder),
        ([], None, [only]) => return Ok(Model::File((*only).to_owned())),
        ([], None, []) => {
            "has neither safetensors with a config.json, nor a .gguf or .upg file: choose another repository"
                .to_owned()
        }
        ([], None, many) | (many, ..) => {
            format!("has several models; name one of its files: {}", many.join(", "))
        }
    };
    Err(HubError::Choice { repo: repo.name().to_string(), why })
}

impl Hub {
    /// The files that make up the model of a repository: its only `.upg` file; or its safetensors and what goes with them;
    /// or its only `.gguf` file.
    ///
    /// # Errors
    /// [`HubError::Choice`] where there is none, or more than one; those of [`Repo::file`]; and of the connection.
    pub fn model_files(&self, repo: &Repo, watch: &dyn Watch) -> Result<Vec<RemoteFile>, HubError> {
        match model(repo)? {
            Model::File(path) => Ok(vec![repo.file(&path)?]),
            Model::Folder { sharded } => {
                let mut files = side_files(repo, sharded)?;
                files.extend(self.shards(repo, sharded, watch)?);
                Ok(files)
            }
        }
    }

    /// The files of weights of a repository with safetensors.
    pub(crate) fn shards(
        &self,
        repo: &Repo,
        sharded: bool,
        watch: &dyn Watch,
    ) -> Result<Vec<RemoteFile>, HubError> {
        if !sharded {
            return Ok(vec![repo.file(SINGLE_FILE)?]);
        }
        let index = repo.file(INDEX_FILE)?;
        let request = Request { path: &repo.resolve(&index), what: INDEX_FILE, headers: &[] };
        let bytes = self.read(&request, INDEX_CAP, watch)?;
        index.check(&bytes)?;
        shard_names(Path::new(INDEX_FILE), &bytes)?.iter().map(|name| repo.file(name)).collect()
    }
}

/// The small files that go with safetensors, the index of shards among them.
pub(crate) fn side_files(repo: &Repo, sharded: bool) -> Result<Vec<RemoteFile>, HubError> {
    let index = sharded.then_some(INDEX_FILE);
    let names = SIDE_FILES.into_iter().chain(index);
    names.filter(|name| repo.has(name)).map(|name| repo.file(name)).collect()
}
