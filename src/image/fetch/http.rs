//! Asking servers, by HTTP and HTTPS, through the user's proxy and with the host's authorities.
//!
//! What begins with `https` stays so through all redirects. A server that says nothing for
//! [`STALL`] is given up.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Proxy, ResponseExt as _};

use super::super::source::mirror::Mirrors;

/// Silence after which a connection is lost.
pub const STALL: Duration = Duration::from_secs(30);
/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(30);
/// Before a small file is asked for again: so often, and each time after so long.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];
/// For a whole small file.
const SMALL_FILE: Duration = Duration::from_secs(60);
/// Metadata of a stream is some 200 KiB.
const SMALL_FILE_LIMIT: u64 = 8 << 20;

/// Asks servers for files.
#[derive(Debug, Clone)]
pub struct Client {
    /// For `https`, from which no redirect leads away.
    secure: Agent,
    plain: Agent,
    mirrors: Arc<Mirrors>,
    deadline: Option<Instant>,
}

/// Why a server gave no answer that is of use.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("`{url}` cannot be had")]
    Exchange {
        url: String,
        #[source]
        source: Box<ureq::Error>,
    },
    #[error("the server answered {code} to `{url}`")]
    Status { url: String, code: u16 },
    #[error("`{url}` cannot be read")]
    Body {
        url: String,
        #[source]
        source: io::Error,
    },
}

/// What a server said to a request for a file, or for the rest of one.
pub enum Answer {
    /// All of it.
    Whole(File),
    /// What comes after the bytes that were named.
    Rest(File),
    /// There is nothing after those bytes.
    NoRest,
    Missing,
}

/// A file on its way.
pub struct File {
    /// Of the whole file, where the server says it.
    pub total: Option<u64>,
    /// What changes when the file does.
    pub validator: Option<String>,
    pub body: Box<dyn Read + Send>,
}

impl HttpError {
    /// Whether it may be otherwise in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            HttpError::Status { code, .. } => *code == 429 || *code >= 500,
            HttpError::Body { .. } => true,
            // A certificate that nobody vouches for is told as `InvalidData`.
            HttpError::Exchange { source, .. } => {
                matches!(
                    &**source,
                    ureq::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData
                ) || matches!(
                    **source,
                    ureq::Error::Timeout(_)
                        | ureq::Error::ConnectionFailed
                        | ureq::Error::BodyStalled
                        | ureq::Error::Protocol(_)
                        | ureq::Error::HostNotFound
                )
            }
        }
    }
}

impl Client {
    /// `authorities` are the certificates that servers are trusted by, in DER. At the deadline each
    /// request ends.
    pub fn new(
        mirrors: Mirrors,
        proxy: Option<&Proxy>,
        authorities: &[Vec<u8>],
        deadline: Option<Instant>,
    ) -> Client {
        let roots: Vec<Certificate<'static>> = authorities
            .iter()
            .map(|der| Certificate::from_der(der).to_owned())
            .collect();
        let agent = |https_only| {
            let tls = TlsConfig::builder()
                .root_certs(RootCerts::new_with_certs(&roots))
                .unversioned_rustls_crypto_provider(Arc::new(
                    rustls::crypto::ring::default_provider(),
                ))
                .build();
            Agent::config_builder()
                .https_only(https_only)
                .tls_config(tls)
                .proxy(proxy.cloned())
                .http_status_as_error(false)
                .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .timeout_resolve(Some(CONNECT))
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(STALL))
                .timeout_per_read(Some(STALL))
                .build()
                .new_agent()
        };
        Client {
            secure: agent(true),
            plain: agent(false),
            mirrors: Arc::new(mirrors),
            deadline,
        }
    }

    /// How much time is left; absent when there is no deadline.
    pub fn left(&self) -> Option<Duration> {
        let deadline = self.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// What is left of the time, or of `limit`, for one request; never nothing.
    fn within(&self, limit: Duration) -> Duration {
        let left = self.left().map_or(limit, |left| left.min(limit));
        left.max(Duration::from_millis(1))
    }

    /// Where this official address is asked for.
    pub fn mirrored(&self, url: &str) -> String {
        self.mirrors.of(url)
    }

    fn agent(&self, url: &str) -> &Agent {
        if url.starts_with("https:") {
            &self.secure
        } else {
            &self.plain
        }
    }

    /// A small file, by its official address. `None` when there is none. What may be otherwise in a
    /// moment is tried again.
    pub fn small(&self, url: &str) -> Result<Option<Vec<u8>>, HttpError> {
        let url = self.mirrored(url);
        self.persist(|limit| {
            let request = self.agent(&url).get(&url);
            let request = request.config().timeout_global(Some(limit)).build();
            let mut response = request.call().map_err(|source| exchange(&url, source))?;
            match response.status().as_u16() {
                200 => response
                    .body_mut()
                    .with_config()
                    .limit(SMALL_FILE_LIMIT)
                    .read_to_vec()
                    .map(Some)
                    .map_err(|source| exchange(&url, source)),
                code if is_missing(code) => Ok(None),
                code => Err(status(&url, code)),
            }
        })
    }

    /// Whether there is such a file, by its official address.
    pub fn has(&self, url: &str) -> Result<bool, HttpError> {
        let url = self.mirrored(url);
        self.persist(|limit| {
            let request = self.agent(&url).head(&url);
            let request = request.config().timeout_global(Some(limit)).build();
            let response = request.call().map_err(|source| exchange(&url, source))?;
            match response.status().as_u16() {
                200 => Ok(true),
                code if is_missing(code) => Ok(false),
                code => Err(status(&url, code)),
            }
        })
    }

    /// Asks again after [`PAUSES`], all of them within [`SMALL_FILE`]. The question hears how long
    /// it may take.
    fn persist<T>(
        &self,
        mut ask: impl FnMut(Duration) -> Result<T, HttpError>,
    ) -> Result<T, HttpError> {
        let end = Instant::now() + self.within(SMALL_FILE);
        let mut pauses = PAUSES.iter();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match (ask(left.max(Duration::from_millis(1))), pauses.next()) {
                (Err(error), Some(pause)) if error.is_passing() && *pause < left => {
                    tracing::info!(%error, "asking again");
                    // No event tells when a server is well again.
                    thread::park_timeout(*pause);
                }
                (answer, _) => return answer,
            }
        }
    }

    /// The file at `url` from byte `from` on, if it is still the one that had this validator.
    pub fn open(&self, url: &str, from: u64, validator: Option<&str>) -> Result<Answer, HttpError> {
        let mut request = self.agent(url).get(url);
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
            if let Some(validator) = validator {
                request = request.header("if-range", validator);
            }
        }
        let most = self.left().map(|_| self.within(Duration::MAX));
        let request = request.config().timeout_global(most).build();
        let response = request.call().map_err(|source| exchange(url, source))?;
        tracing::debug!(url, from, status = %response.status(), at = %response.get_uri(), "asked");
        let headers = response.headers();
        let validator = validator_of(headers);
        let range = content_range(headers);
        let code = response.status().as_u16();
        let length = response.body().content_length();
        let file = |total| File {
            total,
            validator,
            body: Box::new(
                response
                    .into_body()
                    .into_with_config()
                    .limit(u64::MAX)
                    .reader(),
            ),
        };
        match code {
            200 => Ok(Answer::Whole(file(length))),
            206 if from > 0 => match range {
                Some((start, total)) if start == from => Ok(Answer::Rest(file(total))),
                _ => Err(status(url, code)),
            },
            416 if from > 0 => Ok(Answer::NoRest),
            code if is_missing(code) => Ok(Answer::Missing),
            code => Err(status(url, code)),
        }
    }
}

fn exchange(url: &str, source: ureq::Error) -> HttpError {
    HttpError::Exchange {
        url: url.to_owned(),
        source: Box::new(source),
    }
}

fn status(url: &str, code: u16) -> HttpError {
    let url = url.to_owned();
    HttpError::Status { url, code }
}

/// Object stores say 403 of what they do not have.
fn is_missing(code: u16) -> bool {
    [403, 404, 410].contains(&code)
}

/// A strong entity tag, else the time of the last change (RFC 9110, section 13.1.5).
fn validator_of(headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::to_owned);
    text(ETAG)
        .filter(|tag| tag.starts_with('"'))
        .or_else(|| text(LAST_MODIFIED))
}

/// `bytes 100-199/200`, or `/*` where the whole is not known.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Answer::Whole(_) => "Whole",
            Answer::Rest(_) => "Rest",
            Answer::NoRest => "NoRest",
            Answer::Missing => "Missing",
        })
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("total", &self.total)
            .field("validator", &self.validator)
            .finish_non_exhaustive()
    }
}
