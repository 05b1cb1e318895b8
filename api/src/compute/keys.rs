//! SSH keys: reading what users bring, and making pairs for clients of the versions that still let the server do it.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use md5::{Digest, Md5};

/// Longest public key in bytes.
const LONGEST: usize = 16 << 10;

/// A key type is at most so long in the blob.
const TYPES: &[&str] = &[
    "ssh-rsa",
    "ssh-dss",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// The MD5 fingerprint, colon-separated, of a public key in OpenSSH's one-line form.
///
/// # Errors
/// What is wrong with the text.
pub fn fingerprint(public_key: &str) -> Result<String, String> {
    if public_key.len() > LONGEST {
        return Err(format!("the key is longer than {LONGEST} bytes"));
    }
    let mut words = public_key.split_whitespace();
    let (Some(kind), Some(data)) = (words.next(), words.next()) else {
        return Err(
            "an OpenSSH public key is expected: its type and its base64 data, as in the .pub file".to_owned()
        );
    };
    if !TYPES.contains(&kind) {
        return Err(format!("'{}' is not a known key type", kind.chars().take(40).collect::<String>()));
    }
    let blob = STANDARD
        .decode(data)
        .or_else(|_| STANDARD_NO_PAD.decode(data))
        .map_err(|_| "its data is not base64".to_owned())?;
    // The blob repeats the type: a length in four bytes, then the text.
    let inner = blob
        .first_chunk::<4>()
        .and_then(|length| usize::try_from(u32::from_be_bytes(*length)).ok())
        .and_then(|length| blob.get(4..length.checked_add(4)?));
    if inner != Some(kind.as_bytes()) {
        return Err(format!("its data is not that of a {kind} key"));
    }
    let digest = Md5::digest(&blob);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"))
}

/// A new Ed25519 pair: the private key as OpenSSH keeps it in files, and the public one in one line.
///
/// # Errors
/// When the system gives no random numbers.
pub fn generate(comment: &str) -> Result<(String, String), String> {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).map_err(|error| error.to_string())?;
    let pair = ssh_key::private::Ed25519Keypair::from_seed(&seed);
    let comment: String = comment.chars().filter(|it| it.is_ascii_graphic()).collect();
    let key = ssh_key::PrivateKey::new(ssh_key::private::KeypairData::Ed25519(pair), comment)
        .map_err(|error| error.to_string())?;
    let private = key.to_openssh(ssh_key::LineEnding::LF).map_err(|error| error.to_string())?;
    let public = key.public_key().to_openssh().map_err(|error| error.to_string())?;
    Ok((private.to_string(), public))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::proptest;

    #[test]
    fn generated_keys_are_read_back_and_others_are_explained() {
        let (private, public) = generate("demo").unwrap();
        assert!(private.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        let print = fingerprint(&public).unwrap();
        assert_eq!(print.len(), 47, "{print}");
        assert!(fingerprint("ssh-rsa AAAA").unwrap_err().contains("not that of a ssh-rsa key"));
        let moved = public.replacen("ssh-ed25519", "ssh-rsa", 1);
        assert!(fingerprint(&moved).is_err());
        assert!(fingerprint("hello").unwrap_err().contains(".pub"));
        assert!(fingerprint(&"a".repeat(20_000)).unwrap_err().contains("longer"));
    }

    proptest! {
        #[test]
        fn any_text_is_an_answer_not_a_panic(text in ".{0,200}") {
            let _ = fingerprint(&text);
            let _ = fingerprint(&format!("ssh-rsa {text}"));
        }
    }
}
