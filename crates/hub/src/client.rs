//! One request: where the token goes, which redirects are followed, what the answers mean.

use std::{io::Read as _, time::Duration};

use ureq::{
    Agent, Body,
    http::{Response, StatusCode, Uri, header},
};

use crate::{
    HubError, Patience, Settings, Token, Watch,
    address::{self, Origin},
    retry::{Failure, retry},
};

/// The most redirects that are followed for one request; the hub needs two.
const REDIRECTS: usize = 5;
/// The most bytes of a refusal that are read.
const REFUSAL_CAP: u64 = 16 << 10;
/// The most characters of a refusal that are shown.
const REFUSAL_SHOWN: usize = 200;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(15);

/// The hub: where it is, and who asks.
#[derive(Debug)]
pub struct Hub {
    agent: Agent,
    /// Without a slash at the end.
    endpoint: String,
    origin: Origin,
    token: Option<Token>,
    pub(crate) patience: Patience,
}

/// A successful answer.
pub(crate) struct Answer {
    pub response: Response<Body>,
    /// Who sent it.
    pub host: String,
    /// The SHA-256 that the hub gave (`X-Linked-ETag`) when it redirected to this answer.
    pub linked_etag: Option<String>,
}

impl Answer {
    /// A header's text.
    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

/// What is asked for, and with which headers.
pub(crate) struct Request<'a> {
    /// Behind the endpoint; begins with a slash.
    pub path: &'a str,
    /// As errors call it.
    pub what: &'a str,
    pub headers: &'a [(header::HeaderName, String)],
}

impl Hub {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// [`HubError::Endpoint`] for an address that cannot be used, and [`HubError::Token`] where a token would have to go over
    /// an open connection.
    pub fn new(settings: &Settings, patience: Patience) -> Result<Self, HubError> {
        let (endpoint, origin) = address::endpoint(&settings.endpoint)?;
        if settings.token.is_some() && !origin.is_secure() && !origin.is_loopback() {
            let why =
                "would be sent in the clear: use an https:// address in HF_ENDPOINT, or unset the token";
            return Err(HubError::Token { place: "the environment".into(), why });
        }
        // Redirects are followed below, where it is known who may see the token.
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("upg/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(patience.silence))
            .timeout_per_read(Some(patience.silence))
            .build()
            .new_agent();
        Ok(Self { agent, endpoint, origin, token: settings.token.clone(), patience })
    }

    /// The hub's host, for people.
    pub fn host(&self) -> &str {
        self.origin.host()
    }

    /// Asks again and again for an answer of at most `cap` bytes.
    pub(crate) fn read(
        &self,
        request: &Request<'_>,
        cap: u64,
        watch: &dyn Watch,
    ) -> Result<Vec<u8>, HubError> {
        retry(&self.patience, watch, || self.read_once(request, cap).map_err(|failure| (failure, false)))
    }

    fn read_once(&self, request: &Request<'_>, cap: u64) -> Result<Vec<u8>, Failure> {
        let Answer { response, host, .. } = self.get(request)?;
        let mut bytes = Vec::new();
        let read = response.into_body().into_reader().take(cap + 1).read_to_end(&mut bytes);
        let what = request.what.to_owned();
        if let Err(reason) = read {
            return Err(Failure::Passing(HubError::Network { host, reason: ureq::Error::Io(reason) }, None));
        }
        if bytes.len() as u64 > cap {
            let why = format!("more than {cap} bytes");
            return Err(HubError::Answer { host, what, why }.into());
        }
        Ok(bytes)
    }

    /// Asks once, and follows redirects. The token is sent to the hub's own scheme, host and port alone.
    pub(crate) fn get(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        let address = format!("{}{}", self.endpoint, request.path);
        let mut uri: Uri = address.parse().map_err(|_| HubError::Name(request.what.to_owned()))?;
        let mut linked_etag = None;
        for _ in 0..=REDIRECTS {
            let origin = Origin::of(&uri)
                .ok_or_else(|| self.redirect(&self.origin, request, "to a strange address"))?;
            let response = self.send(&uri, &origin, request)?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return self.judge(response, origin, linked_etag, request);
            }
            if origin == self.origin {
                let etag = response.headers().get("x-linked-etag").and_then(|etag| etag.to_str().ok());
                linked_etag = etag.map(|etag| etag.trim_matches('"').to_owned()).or(linked_etag);
            }
            let location = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            let next = location.and_then(|to| address::redirected(&uri, to));
            uri = next.ok_or_else(|| self.redirect(&origin, request, "to no address"))?;
            if origin.is_secure() && !Origin::of(&uri).is_some_and(|to| to.is_secure()) {
                return Err(self.redirect(&origin, request, "to an open connection").into());
            }
        }
        Err(self.redirect(&self.origin, request, "in a circle").into())
    }

    fn send(&self, uri: &Uri, origin: &Origin, request: &Request<'_>) -> Result<Response<Body>, Failure> {
        let mut built = self.agent.get(uri);
        for (name, value) in request.headers {
            built = built.header(name, value);
        }
        if let Some(token) = self.token.as_ref().filter(|_| *origin == self.origin) {
            built = built.header(header::AUTHORIZATION, token.header());
        }
        built.call().map_err(|reason| {
            let lasting =
                matches!(reason, ureq::Error::Rustls(_) | ureq::Error::Http(_) | ureq::Error::BadUri(_));
            let error = HubError::Network { host: origin.host().to_owned(), reason };
            if lasting { Failure::Lasting(error) } else { Failure::Passing(error, None) }
        })
    }

    fn redirect(&self, origin: &Origin, request: &Request<'_>, why: &'static str) -> HubError {
        HubError::Redirect { host: origin.host().to_owned(), what: request.what.to_owned(), why }
    }

    fn judge(
        &self,
        response: Response<Body>,
        origin: Origin,
        linked_etag: Option<String>,
        request: &Request<'_>,
    ) -> Result<Answer, Failure> {
        let (host, what, status) = (origin.host().to_owned(), request.what.to_owned(), response.status());
        if status.is_success() {
            return Ok(Answer { response, host, linked_etag });
        }
        let gated = response.headers().get("x-error-code").is_some_and(|code| code == "GatedRepo");
        let asked =
            response.headers().get(header::RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.parse().ok());
        let (page, code) = (self.page(request.path), status.as_u16());
        Err(match code {
            _ if gated => HubError::Gated { host, what, status: code, page }.into(),
            401 | 404 if origin == self.origin => HubError::NotFound { host, what, status: code }.into(),
            403 if origin == self.origin => HubError::Gated { host, what, status: code, page }.into(),
            _ => {
                let error = HubError::Status { host, what, status: code, said: said(response) };
                // An address that a hub signs for another host runs out: the next try gets a new one.
                let passing = matches!(code, 408 | 425 | 429 | 500..=599) || origin != self.origin;
                if passing { Failure::Passing(error, asked.map(Duration::from_secs)) } else { error.into() }
            }
        })
    }

    /// The page of a repository, from the path of a request for it.
    fn page(&self, path: &str) -> String {
        let path = path.strip_prefix("/api/models").unwrap_or(path);
        let name: Vec<&str> = path.split('/').skip(1).take(2).collect();
        format!("{}/{}", self.endpoint, name.join("/"))
    }
}

/// What a refusal says, on one line.
fn said(response: Response<Body>) -> String {
    let header = response.headers().get("x-error-message").and_then(|said| said.to_str().ok());
    let text = header.map(str::to_owned).unwrap_or_else(|| {
        let mut text = Vec::new();
        // A refusal that cannot be read is shown without its text.
        let _ = response.into_body().into_reader().take(REFUSAL_CAP).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line: String = line.chars().filter(|c| !c.is_control()).take(REFUSAL_SHOWN).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}
