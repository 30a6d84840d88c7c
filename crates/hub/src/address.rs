//! Addresses of hosts, and what may be sent where.

use std::net::IpAddr;

use ureq::http::{Uri, uri::Scheme};

use crate::HubError;

/// Whom one talks to: scheme, host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// `None` for anything but http and https, or without a host, or with a user's name in it.
    pub(crate) fn of(uri: &Uri) -> Option<Self> {
        let secure = match uri.scheme()? {
            scheme if *scheme == Scheme::HTTPS => true,
            scheme if *scheme == Scheme::HTTP => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Some(Self { secure, host: authority.host().to_ascii_lowercase(), port })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether it is this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        let ip = self.host.trim_matches(['[', ']']).parse::<IpAddr>();
        self.host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    }
}

/// Reads a hub's address; returns it without a slash at the end.
pub(crate) fn endpoint(address: &str) -> Result<(String, Origin), HubError> {
    let wrong = |why| HubError::Endpoint { address: address.to_owned(), why };
    let uri: Uri = address.parse().map_err(|_| wrong("it cannot be parsed"))?;
    let origin =
        Origin::of(&uri).ok_or_else(|| wrong("it must begin with https:// or http:// and name a host"))?;
    if uri.query().is_some() {
        return Err(wrong("it has a query"));
    }
    Ok((address.trim_end_matches('/').to_owned(), origin))
}

/// Where a `Location` leads: an address, or a path on the same host.
pub(crate) fn redirected(from: &Uri, location: &str) -> Option<Uri> {
    let to = if location.starts_with('/') && !location.starts_with("//") {
        format!("{}://{}{location}", from.scheme_str()?, from.authority()?)
    } else {
        location.to_owned()
    };
    to.parse().ok().filter(|uri: &Uri| uri.scheme().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Option<Origin> {
        Origin::of(&text.parse().unwrap())
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443/b?c"));
        for other in [
            "http://hub.example",
            "https://hub.example:444",
            "https://hub.example.evil",
            "https://x.hub.example",
        ] {
            assert_ne!(origin("https://hub.example"), origin(other), "{other}");
        }
        assert_eq!(origin("ftp://hub.example"), None);
        assert_eq!(origin("https://user@hub.example"), None);
    }

    #[test]
    fn this_machine_is_known() {
        for (text, here) in [
            ("http://localhost:1", true),
            ("http://127.0.0.2", true),
            ("http://[::1]:5", true),
            ("http://127.0.0.1.evil.example", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(origin(text).unwrap().is_loopback(), here, "{text}");
        }
    }

    #[test]
    fn addresses_of_hubs() {
        assert_eq!(endpoint("https://hub.example/mirror/").unwrap().0, "https://hub.example/mirror");
        for wrong in ["", "hub.example", "ftp://hub.example", "https://", "https://hub.example?x=1"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn redirects_are_resolved() {
        let from: Uri = "https://hub.example:8/a/b?c".parse().unwrap();
        let to = |location| redirected(&from, location).map(|uri| uri.to_string());
        assert_eq!(to("/x?y=1").unwrap(), "https://hub.example:8/x?y=1");
        assert_eq!(to("https://cdn.example/z").unwrap(), "https://cdn.example/z");
        for wrong in ["x", "//evil.example/x", "", "http://", "\u{1}"] {
            assert_eq!(to(wrong), None, "{wrong}");
        }
    }
}
