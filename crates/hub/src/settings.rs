//! Where the hub is and who asks, from the environment that Hugging Face's own tools read.

use std::{fmt, fs::File, io::Read as _, path::PathBuf};

use crate::HubError;

/// The hub, unless `HF_ENDPOINT` names another.
const HUB: &str = "https://huggingface.co";

/// The most bytes of a token.
const TOKEN_CAP: u64 = 4096;

/// A secret. It never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token found in `place`, without the white space around it.
    ///
    /// # Errors
    /// [`HubError::Token`] for what cannot be a token.
    pub fn new(text: &str, place: &str) -> Result<Self, HubError> {
        let text = text.trim();
        let wrong = |why| Err(HubError::Token { place: place.to_owned(), why });
        if text.len() as u64 > TOKEN_CAP {
            wrong("is too long")
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            wrong("has characters that no token has")
        } else {
            Ok(Self(text.to_owned()))
        }
    }

    /// The header that it is sent in.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where the hub is and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The hub's address.
    pub endpoint: String,
    /// Who asks; `None`: anybody.
    pub token: Option<Token>,
}

impl Settings {
    /// `HF_ENDPOINT`; the token of `HF_TOKEN`, or of the file that `HF_TOKEN_PATH` names, or of `HF_HOME/token` (by default
    /// `~/.cache/huggingface/token`, where `hf auth login` leaves it).
    ///
    /// # Errors
    /// [`HubError::Token`] for a token that cannot be one, [`HubError::Io`] for a file that cannot be read, and
    /// [`HubError::Offline`] where `HF_HUB_OFFLINE` is set.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(env: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let on = |name| env(name).is_some_and(|value| is_true(&value));
        if on("HF_HUB_OFFLINE") {
            return Err(HubError::Offline);
        }
        let token = if on("HF_HUB_DISABLE_IMPLICIT_TOKEN") { None } else { token(&env)? };
        Ok(Self { endpoint: env("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned()), token })
    }
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&&*value.to_ascii_lowercase())
}

fn token(env: &impl Fn(&str) -> Option<String>) -> Result<Option<Token>, HubError> {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = env(name).filter(|text| !text.trim().is_empty()) {
            return Token::new(&text, name).map(Some);
        }
    }
    let home = || {
        let cache = env("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
        env("HF_HOME").map(PathBuf::from).or_else(|| Some(cache?.join("huggingface")))
    };
    let named = env("HF_TOKEN_PATH").map(PathBuf::from);
    let Some(path) = named.or_else(|| Some(home()?.join("token"))) else { return Ok(None) };
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(TOKEN_CAP + 1).read_to_string(&mut text)) {
        Ok(_) if text.trim().is_empty() => Ok(None),
        Ok(_) => Token::new(&text, &path.display().to_string()).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(HubError::Io { path, reason }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(env: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::from(|name| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn token(env: &[(&str, &str)]) -> Option<String> {
        settings(env).unwrap().token.map(|token| token.0)
    }

    #[test]
    fn tokens_come_from_the_usual_places() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, "hf_other\n").unwrap();
        let other = other.to_str().unwrap();
        assert_eq!(token(&[("HF_HOME", home)]), None);
        std::fs::write(folder.path().join("token"), " hf_home \n").unwrap();
        assert_eq!(token(&[("HF_HOME", home)]).unwrap(), "hf_home");
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN_PATH", other)]).unwrap(), "hf_other");
        assert_eq!(token(&[("HF_TOKEN", "hf_env"), ("HF_TOKEN_PATH", other)]).unwrap(), "hf_env");
        assert_eq!(token(&[("HF_TOKEN", "hf_env"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        std::fs::create_dir(folder.path().join("huggingface")).unwrap();
        std::fs::write(folder.path().join("huggingface/token"), "hf_cache").unwrap();
        assert_eq!(token(&[("XDG_CACHE_HOME", home)]).unwrap(), "hf_cache");
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_shown() {
        for wrong in ["hf_a b", "hf_a\r\nX-Evil: 1", "h\u{e9}"] {
            let error = settings(&[("HF_TOKEN", wrong)]).unwrap_err().to_string();
            assert!(error.contains("HF_TOKEN") && !error.contains("hf_a"), "{error}");
        }
        let settings = settings(&[("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn another_hub_and_none() {
        assert_eq!(settings(&[("HF_HOME", "/nowhere")]).unwrap().endpoint, HUB);
        let env = [("HF_ENDPOINT", "https://hub.example"), ("HF_HOME", "/nowhere")];
        assert_eq!(settings(&env).unwrap().endpoint, "https://hub.example");
        assert!(matches!(settings(&[("HF_HUB_OFFLINE", "1")]), Err(HubError::Offline)));
    }
}
