//! Writer of the `newc` archive that Linux unpacks as its first file system (kernel documentation,
//! `driver-api/early-userspace/buffer-format.rst`). Uncompressed: unpacking under software emulation costs more than reading.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Archive being written. Every file belongs to root and has time stamp zero, so equal input gives equal bytes.
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

impl<W: Write> Archive<W> {
    /// Starts an archive on `out`.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a directory; parents have to be added first.
    ///
    /// # Errors
    /// When writing fails.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[], (0, 0))
    }

    /// Adds a file with permission bits `mode`.
    ///
    /// # Errors
    /// When writing fails or the content does not fit the format (4 GiB).
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | (mode & 0o7777), content, (0, 0))
    }

    /// Adds a symbolic link to `target`.
    ///
    /// # Errors
    /// When writing fails.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, target.as_bytes(), (0, 0))
    }

    /// Adds a character device, as `/dev/console` which the kernel opens before anything can mount.
    ///
    /// # Errors
    /// When writing fails.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER | (mode & 0o7777), &[], (major, minor))
    }

    /// Adds the folder `source` as `path`, with all that is below it: folders, files with their permission bits, links.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub fn tree(&mut self, source: &Path, path: &str) -> io::Result<()> {
        let mut entries: Vec<_> = std::fs::read_dir(source)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{path}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.directory(&name)?;
                self.tree(&entry.path(), &name)?;
            } else if kind.is_symlink() {
                self.symlink(&name, &std::fs::read_link(entry.path())?.to_string_lossy())?;
            } else {
                self.file(&name, entry.metadata()?.permissions().mode(), &std::fs::read(entry.path())?)?;
            }
        }
        Ok(())
    }

    /// Ends the archive and gives the writer back.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[], (0, 0))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) -> io::Result<()> {
        let too_long =
            || io::Error::new(io::ErrorKind::InvalidInput, format!("{path} does not fit a cpio archive"));
        let size = u32::try_from(content.len()).map_err(|_| too_long())?;
        let name_size = u32::try_from(path.len() + 1).map_err(|_| too_long())?;
        self.inode += 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), its own device (2), name size, checksum
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0]
            .map(|n| format!("{n:08x}"));
        write!(self.out, "070701{}{path}\0", fields.concat())?;
        self.pad(110 + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn entries_are_aligned_and_complete() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").expect("memory");
        archive.file("bin/x", 0o755, b"hello").expect("memory");
        archive.symlink("init", "bin/x").expect("memory");
        archive.character_device("console", 0o600, 5, 1).expect("memory");
        let bytes = archive.finish().expect("memory");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes.windows(6).filter(|w| w == b"070701").count(), 5);
        // Second header: 110 bytes of header + "bin\0" end at 114, padded to 116.
        assert_eq!(&bytes[116..122], b"070701");
        let size = std::str::from_utf8(&bytes[116 + 54..116 + 62]).expect("hex");
        assert_eq!(size, "00000005");
        assert_eq!(&bytes[116 + 110..116 + 116], b"bin/x\0");
        assert_eq!(&bytes[116 + 116..116 + 121], b"hello");
    }

    #[test]
    fn the_system_cpio_agrees_when_present() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("d").expect("memory");
        archive.file("d/abc", 0o644, b"content\n").expect("memory");
        let bytes = archive.finish().expect("memory");
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("a.cpio");
        std::fs::write(&path, bytes).expect("write");
        let input = std::fs::File::open(&path).expect("open");
        let Ok(output) = std::process::Command::new("cpio").arg("-it").stdin(input).output() else { return };
        assert_eq!(String::from_utf8_lossy(&output.stdout), "d\nd/abc\n");
    }
}
