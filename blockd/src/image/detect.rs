//! What an image is, by its content, against what its owner says it is.
//!
//! A format is never guessed to decide how to read an image: a raw disk whose guest wrote a qcow2 header into its first
//! sector would then be read as qcow2, with a backing file of the guest's choice. So the claim decides, and content that
//! looks like another format than the claim is refused.

use super::qcow2::MAGIC;
use wire::Refused;

/// Bytes from the beginning that detection looks at.
pub const HEAD: usize = 64 << 10;

/// How an image's bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The bytes are the disk.
    Raw,
    /// qcow2
    Qcow2,
}

impl Form {
    /// What a claimed `disk_format` means here.
    ///
    /// # Errors
    /// For formats that are not read.
    pub fn claimed(format: &str) -> Result<Self, Refused> {
        match format {
            "raw" | "iso" | "ami" | "aki" | "ari" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            other => {
                let shown: String = other.chars().take(32).collect();
                Err(Refused::invalid(format!("images of format '{shown}' cannot be used here"))
                    .remedy("convert it with `qemu-img convert -O qcow2 IMAGE NEW` and upload that"))
            }
        }
    }
}

/// Names the container format that the content shows, if it shows one that a raw disk must not begin with.
#[must_use]
pub fn detect(head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(0, &MAGIC) {
        return Some("qcow2");
    }
    let signs: [(usize, &[u8], &str); 9] = [
        (0, b"QED\0", "qed"),
        (0, b"KDMV", "vmdk"),
        (0, b"COWD", "vmdk"),
        (0, b"# Disk DescriptorFile", "vmdk"),
        (0, b"conectix", "vhd"),
        (0, b"vhdxfile", "vhdx"),
        (0x40, &[0x7f, 0x10, 0xda, 0xbe], "vdi"),
        (0, b"WithoutFreeSpace", "ploop"),
        (0, b"WithouFreSpacExt", "ploop"),
    ];
    signs.iter().find(|(offset, magic, _)| at(*offset, magic)).map(|(_, _, name)| *name)
}

/// Refuses content that contradicts the claim.
///
/// # Errors
/// With what was claimed, what was found, and what to do.
pub fn agree(claim: &str, form: Form, head: &[u8]) -> Result<(), Refused> {
    let found = detect(head);
    match (form, found) {
        (Form::Raw, None) | (Form::Qcow2, Some("qcow2")) => Ok(()),
        (Form::Raw, Some(found)) => {
            Err(Refused::invalid(format!("the image is said to be '{claim}' but its content is {found}"))
                .remedy(format!(
                    "give its real format (--disk-format {found}), or convert it to raw or qcow2 first"
                )))
        }
        (Form::Qcow2, found) => {
            let found = found.unwrap_or("not: the qcow2 magic at its beginning is missing");
            Err(Refused::invalid(format!("the image is said to be 'qcow2' but its content is {found}")).remedy(
                "give its real format (--disk-format raw, perhaps), or convert it with `qemu-img convert -O qcow2`",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_that_contradicts_the_claim_is_refused_with_both_names() {
        let qcow2 = [MAGIC.as_slice(), &[0; 100]].concat();
        let refused = agree("raw", Form::Raw, &qcow2).unwrap_err();
        assert!(refused.message.contains("'raw'") && refused.message.contains("qcow2"), "{refused}");
        assert!(agree("qcow2", Form::Qcow2, &qcow2).is_ok());
        assert!(agree("qcow2", Form::Qcow2, b"\xeb\x63\x90").is_err());
        assert!(agree("raw", Form::Raw, b"\xeb\x63\x90").is_ok());
        assert!(agree("raw", Form::Raw, b"").is_ok());
        let mut vdi = vec![0u8; 128];
        vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        assert_eq!(detect(&vdi), Some("vdi"));
        for (magic, name) in [(&b"KDMV"[..], "vmdk"), (b"conectix", "vhd"), (b"vhdxfile", "vhdx")] {
            assert_eq!(detect(magic), Some(name));
        }
        assert!(Form::claimed("vmdk").unwrap_err().remedy.contains("qemu-img"));
    }
}
