//! HTTPS: the host's authorities, a company's own, proxies, and no way back to HTTP.

use std::path::Path;
use std::process::Output;
use std::sync::PoisonError;

use serde_json::json;

use crate::image::server::{Manners, Server, proxy};
use crate::image::support::{Net, image, pack, sha256};

/// `kiln image pull` with these variables.
fn pull(net: &Net, variables: &[(&str, &str)]) -> Output {
    let mut command = net.world.command(&["image", "pull"]);
    command.envs(variables.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn authority() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/image/tls/authority.pem");
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_company_s_authority_is_trusted_where_it_is_named_and_nowhere_else() {
    let net = Net::new();
    let content = image(1, 41);
    let packed = pack("xz", &["-0"], &content);
    let server = Server::secure();
    server.put("/x.qcow2.xz", packed.clone());
    net.spec(&json!({"disk": server.url("/x.qcow2.xz"), "sha256": sha256(&packed)}));
    let refused = pull(&net, &[]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        said(&refused).contains("invalid peer certificate"),
        "{}",
        said(&refused)
    );
    assert!(
        said(&refused).contains("SSL_CERT_FILE"),
        "{}",
        said(&refused)
    );
    assert!(net.cached().is_empty());
    let taken = pull(&net, &[("SSL_CERT_FILE", &authority())]);
    assert!(taken.status.success(), "{}", said(&taken));
    net.world.ok(&["image", "verify"]);
}

#[test]
fn https_never_becomes_http() {
    let net = Net::new();
    let content = image(1, 42);
    net.server.put("/x.qcow2", content.clone());
    let server = Server::secure();
    let plain = net.server.url("/x.qcow2");
    server.put_with("/x.qcow2", "", Manners::Elsewhere(plain));
    net.spec(&json!({"disk": server.url("/x.qcow2"), "sha256": sha256(&content)}));
    let refused = pull(&net, &[("SSL_CERT_FILE", &authority())]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(
        net.server.asked("/x.qcow2").is_empty(),
        "{}",
        said(&refused)
    );
}

#[test]
fn a_proxy_is_gone_through_and_its_exceptions_are_not() {
    let net = Net::new();
    let content = image(1, 43);
    let server = Server::secure();
    server.put("/x.qcow2", content.clone());
    let url = server.url("/x.qcow2");
    net.spec(&json!({"disk": url, "sha256": sha256(&content)}));
    let (proxy, asked) = proxy();
    let host = url
        .trim_start_matches("https://")
        .split('/')
        .next()
        .unwrap();
    let authority = authority();
    let through = [
        ("HTTPS_PROXY", proxy.as_str()),
        ("SSL_CERT_FILE", &authority),
    ];
    let taken = pull(&net, &through);
    assert!(taken.status.success(), "{}", said(&taken));
    let asked = || asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(asked(), [format!("CONNECT {host} HTTP/1.1")]);
    net.world.ok(&["image", "prune"]);
    let around = [&through[..], &[("NO_PROXY", "127.0.0.1")]].concat();
    let taken = pull(&net, &around);
    assert!(taken.status.success(), "{}", said(&taken));
    assert_eq!(asked().len(), 1);
}

#[test]
fn without_a_digest_two_versions_of_a_file_are_never_put_together() {
    let net = Net::new();
    let (old, new) = (image(2, 44), image(2, 45));
    let server = Server::secure();
    server.put_with("/x.qcow2", old, Manners::Nameless(1 << 20));
    net.spec(&json!({"disk": server.url("/x.qcow2"), "insecure": true}));
    let authority = authority();
    let trusted = [("SSL_CERT_FILE", authority.as_str())];
    let cut = pull(&net, &trusted);
    assert_eq!(cut.status.code(), Some(1), "{}", said(&cut));
    assert!(
        said(&cut).contains("nothing tells whether"),
        "{}",
        said(&cut)
    );
    // It is not even tried.
    assert_eq!(server.asked("/x.qcow2").len(), 1);
    assert!(net.cached().is_empty(), "{:?}", net.cached());
    server.put_with("/x.qcow2", new.clone(), Manners::Nameless(usize::MAX));
    let taken = pull(&net, &trusted);
    assert!(taken.status.success(), "{}", said(&taken));
    let name = format!("sha256-{}.qcow2", sha256(&new));
    assert!(net.cached().contains(&name), "{:?}", net.cached());
}
