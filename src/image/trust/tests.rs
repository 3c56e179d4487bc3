//! Keys and signatures that GnuPG made (`tests/make`), and the vendors' own keys.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use keyring::Vendor;

const CONTENT: &[u8] = b"the content";

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("tests/", $name)).as_slice()
    };
}

const PLAIN: &[u8] = file!("plain.asc");

fn at(year: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs((year - 1970) * 31_557_600)
}

fn judged(signature: &[u8], content: &[u8], key: &[u8]) -> Result<String, TrustError> {
    let mut check = Check::new(signature)?;
    for piece in content.chunks(3) {
        check.update(piece);
    }
    let signer = check.finish(&Keyring::parse(key).unwrap(), at(2024))?;
    assert_eq!(signer.fingerprint.len(), 40);
    Ok(signer.name)
}

#[test]
fn what_gnupg_signed_is_good_in_every_form() {
    for signature in [
        file!("plain-sha256.sig"),
        file!("plain-sha512.sig"),
        file!("plain-armored.sig"),
    ] {
        let signer = judged(signature, CONTENT, PLAIN).unwrap();
        assert_eq!(signer, "plain <plain@example>");
    }
    let signer = judged(file!("sub-in-time.sig"), CONTENT, file!("sub.asc")).unwrap();
    assert_eq!(signer, "sub <sub@example>");
    // One that is good is enough.
    let both = [file!("plain-other.sig"), file!("plain-sha256.sig")].concat();
    judged(&both, CONTENT, PLAIN).unwrap();
    // A keyring may have more keys than the one.
    let ring = [file!("sub.asc"), PLAIN, file!("stolen.asc")].concat();
    judged(file!("plain-sha256.sig"), CONTENT, &ring).unwrap();
}

#[test]
fn another_content_key_or_signature_is_not() {
    let bad = Err(TrustError::Bad {
        name: "plain <plain@example>".to_owned(),
    });
    assert_eq!(
        judged(file!("plain-sha256.sig"), b"the contenT", PLAIN),
        bad
    );
    assert_eq!(judged(file!("plain-sha256.sig"), b"", PLAIN), bad);
    assert_eq!(judged(file!("plain-other.sig"), CONTENT, PLAIN), bad);
    let unknown = judged(file!("plain-sha256.sig"), CONTENT, file!("sub.asc"));
    assert!(
        matches!(unknown, Err(TrustError::UnknownKey { .. })),
        "{unknown:?}"
    );
}

#[test]
fn weak_hashes_and_signatures_of_other_things_are_refused() {
    for (signature, want) in [
        (file!("plain-sha1.sig"), "too weak"),
        (file!("plain-text.sig"), "something else than a file"),
        (PLAIN, "something else in it"),
        (b"".as_slice(), "no signature"),
        (b"<html>", "garbled"),
        (b"-----BEGIN PGP SIGNATURE-----\n", "armor"),
    ] {
        let error = judged(signature, CONTENT, PLAIN).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn a_key_is_judged_as_of_the_time_at_which_it_signed() {
    // Both are long expired in 2024.
    judged(file!("sub-in-time.sig"), CONTENT, file!("sub.asc")).unwrap();
    judged(
        file!("sub-too-late.sig"),
        CONTENT,
        file!("sub-extended.asc"),
    )
    .unwrap();
    let late = judged(file!("sub-too-late.sig"), CONTENT, file!("sub.asc")).unwrap_err();
    assert!(late.to_string().contains("had expired"), "{late}");
}

#[test]
fn a_stolen_key_is_good_for_nothing_and_a_replaced_one_for_what_was_before() {
    judged(
        file!("superseded-before.sig"),
        CONTENT,
        file!("superseded.asc"),
    )
    .unwrap();
    for (signature, key) in [
        (file!("superseded-after.sig"), file!("superseded.asc")),
        (file!("stolen-before.sig"), file!("stolen.asc")),
        (file!("stolen-after.sig"), file!("stolen.asc")),
    ] {
        let error = judged(signature, CONTENT, key).unwrap_err();
        assert!(error.to_string().contains("is revoked"), "{error}");
    }
}

/// A signature packet without numbers; `area` is hashed, `hint` is not.
fn said(kind: u8, hash: u8, area: &[u8], hint: &[u8]) -> Vec<u8> {
    let length = |area: &[u8]| u16::try_from(area.len()).unwrap().to_be_bytes();
    let body = [
        &[4, kind, 1, hash][..],
        &length(area),
        area,
        &length(hint),
        hint,
        &[0, 0],
    ]
    .concat();
    [&[0x88, u8::try_from(body.len()).unwrap()], &body[..]].concat()
}

#[test]
fn a_revocation_that_is_not_understood_revokes() {
    const MADE: &[u8] = &[5, 2, 0x60, 0, 0, 0];
    // Key, user, and what the key says of the user.
    let plain = packet::dearmor(PLAIN).unwrap();
    let tags: Vec<u8> = packet::Cursor(&plain)
        .packets()
        .map(|packet| packet.unwrap().tag)
        .collect();
    assert_eq!(tags, [6, 13, 2]);
    let sub = packet::dearmor(file!("sub.asc")).unwrap();
    let other = [&[9, 16][..], b"somebody"].concat();
    let critical = [MADE, &[2, 0x80 | 100, 0]].concat();
    let soft = [MADE, &[2, 29, 1]].concat();
    for (area, hash, hint) in [
        (MADE, 2, &[][..]),
        (&critical, 8, &[]),
        (MADE, 8, &other),
        (&soft, 8, &other),
        (&[], 8, &[]),
    ] {
        let key = [&plain[..], &said(0x20, hash, area, hint)].concat();
        let error = judged(file!("plain-sha256.sig"), CONTENT, &key).unwrap_err();
        assert!(error.to_string().contains("is revoked"), "{error}");
        let key = [&sub[..], &said(0x28, hash, area, hint)].concat();
        let error = judged(file!("sub-in-time.sig"), CONTENT, &key).unwrap_err();
        assert!(error.to_string().contains("is revoked"), "{error}");
    }
    // Without its user there is nobody's word that the key is good.
    for (hash, hint) in [(2, &[][..]), (8, &[])] {
        let key = [&plain[..], &said(0x30, hash, MADE, hint)].concat();
        assert_eq!(Keyring::parse(&key), Err(KeyringError::Empty));
    }
    // What others said of the user, they may take back.
    let key = [&plain[..], &said(0x30, 8, MADE, &other)].concat();
    judged(file!("plain-sha256.sig"), CONTENT, &key).unwrap();
}

#[test]
fn what_is_signed_in_the_future_is_not_signed() {
    let mut check = Check::new(file!("plain-sha256.sig")).unwrap();
    check.update(CONTENT);
    let ring = Keyring::parse(PLAIN).unwrap();
    assert_eq!(check.finish(&ring, at(2019)), Err(TrustError::Future));
}

#[test]
fn no_bit_of_a_signature_can_be_changed() {
    let good = file!("plain-sha256.sig");
    let mut taken = Vec::new();
    for at in 0..good.len() {
        let mut changed = good.to_vec();
        changed[at] ^= 1;
        if judged(&changed, CONTENT, PLAIN).is_ok() {
            taken.push(at);
        }
    }
    // What is not hashed proves nothing: the issuer's number, and the digest's first bytes.
    assert!(taken.len() < 20, "{taken:?}");
}

#[test]
fn a_subkey_that_does_not_say_that_it_belongs_there_does_not_sign() {
    let bytes = packet::dearmor(file!("sub.asc")).unwrap();
    let packets: Vec<_> = packet::Cursor(&bytes).packets().flatten().collect();
    let tags: Vec<u8> = packets.iter().map(|packet| packet.tag).collect();
    assert_eq!(tags, [6, 13, 2, 14, 2]);
    // The embedded signature lies where it is not hashed: without it, the primary key's word remains.
    let binding = packets[4].body;
    let embedded = binding
        .windows(2)
        .position(|bytes| bytes == [0x20, 4])
        .unwrap();
    let mut changed = bytes.clone();
    let start = bytes.len() - binding.len();
    changed[start + embedded] = 0x65;
    assert_eq!(Keyring::parse(&changed), Err(KeyringError::Empty));
    assert!(Keyring::parse(&bytes).is_ok());
}

#[test]
fn a_keyring_without_a_signing_key_or_with_a_secret_one_is_refused() {
    assert_eq!(Keyring::parse(b""), Err(KeyringError::Empty));
    assert_eq!(Keyring::parse(b"<html>"), Err(KeyringError::Form));
    assert_eq!(Keyring::parse(&[0x94, 1, 4]), Err(KeyringError::Secret));
    assert_eq!(
        Keyring::parse(file!("plain-sha256.sig")),
        Err(KeyringError::Form)
    );
}

#[test]
fn the_vendors_keys_can_be_used() {
    let names = |vendor: Vendor| -> Vec<String> {
        let keyring = Keyring::parse(vendor.shipped()).unwrap();
        let told = |key: &SigningKey| {
            let fingerprint = certificate::hex(&key.fingerprint);
            format!("{fingerprint} {}", key.user)
        };
        keyring.keys().map(told).collect()
    };
    let fedora = names(Vendor::Fedora);
    assert_eq!(fedora.len(), 9);
    // https://fedoraproject.org/security
    let want = "C6E7F081CF80E13146676E88829B606631645531 Fedora (43) <fedora-43-primary@fedoraproject.org>";
    assert!(fedora.iter().any(|name| name == want), "{fedora:?}");
    // https://www.flatcar.org/security/image-signing-key
    let flatcar = names(Vendor::Flatcar);
    let name = "Flatcar Buildbot (Official Builds) <buildbot@flatcar-linux.org>";
    let want = [
        "F88CFEDEFF29A5B4D9523864E25D9AED0593B34A",
        "E9426D8B67E35DF476BD048185F7C8868837E271",
        "52F145DFD00BBDCD928CBB5A32DA80F91EF52974",
    ];
    assert_eq!(
        flatcar,
        want.map(|fingerprint| format!("{fingerprint} {name}"))
    );
}

proptest! {
    #[test]
    fn nothing_panics(at in 0..900_usize, byte: u8, cut in 0..900_usize) {
        for key in [PLAIN, file!("sub.asc")] {
            let mut bytes = packet::dearmor(key).unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(cut.max(1));
            let _ = Keyring::parse(&bytes);
        }
        let mut bytes = file!("sub-in-time.sig").to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut.max(1));
        let _ = Check::new(&bytes);
    }
}
