//! The appliance's disk: a GPT with the firmware's partition and the first root slot. Everything behind them is made by the
//! machine itself at first start, because only it knows its disk.

use super::recipe;
use crate::fault::{Fault, Tool};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const SFDISK: Tool = Tool { name: "sfdisk", package: "fdisk" };
const MKFS: Tool = Tool { name: "mkfs.vfat", package: "dosfstools" };
const MMD: Tool = Tool { name: "mmd", package: "mtools" };
const MCOPY: Tool = Tool { name: "mcopy", package: "mtools" };
const OBJCOPY: Tool = Tool { name: "objcopy", package: "binutils" };
const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// Linux root for x86-64, as the Discoverable Partitions Specification has it.
const LINUX_ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";

/// The parts of a boot image.
#[derive(Debug)]
pub struct Kernel<'a> {
    /// The EFI stub of systemd.
    pub stub: &'a Path,
    /// bzImage.
    pub vmlinuz: &'a Path,
    /// Initrd.
    pub initrd: &'a Path,
    /// Kernel command line.
    pub command_line: &'a str,
    /// Text for the boot menu, as `/etc/os-release`.
    pub os_release: &'a Path,
}

/// Joins kernel, initrd and command line to one EFI program (a unified kernel image). The stub finds the sections by name;
/// their addresses only have to lie behind the stub's own and not overlap.
///
/// # Errors
/// When `objcopy` is missing or refuses.
pub fn unified_kernel(kernel: &Kernel<'_>, scratch: &Path, out: &Path) -> Result<(), Fault> {
    let line = scratch.join("cmdline");
    std::fs::write(&line, kernel.command_line).map_err(Fault::file("write", &line))?;
    // The stub's own sections end well below 16 MiB.
    let mut address = image_base(kernel.stub)? + 16 * MIB;
    let mut arguments: Vec<std::ffi::OsString> = Vec::new();
    for (section, file) in [
        (".osrel", kernel.os_release),
        (".cmdline", &line),
        (".linux", kernel.vmlinuz),
        (".initrd", kernel.initrd),
    ] {
        let size = file.metadata().map_err(Fault::file("read", file))?.len();
        let mut pair = std::ffi::OsString::from(format!("{section}="));
        pair.push(file);
        arguments.extend(["--add-section".into(), pair]);
        arguments.extend(["--change-section-vma".into(), format!("{section}={address:#x}").into()]);
        address = (address + size).next_multiple_of(MIB);
    }
    arguments.extend([kernel.stub.into(), out.into()]);
    OBJCOPY.run(arguments).map(drop)
}

/// `ImageBase` of a 64-bit PE program.
fn image_base(stub: &Path) -> Result<u64, Fault> {
    let bytes = std::fs::read(stub).map_err(Fault::file("read", stub))?;
    let parse = || -> Option<u64> {
        let header = usize::try_from(u32::from_le_bytes(bytes.get(0x3c..0x40)?.try_into().ok()?)).ok()?;
        let signature = bytes.get(header..header.checked_add(4)?)?;
        let optional = header.checked_add(24)?;
        let magic = bytes.get(optional..optional.checked_add(2)?)?;
        let field = bytes.get(optional.checked_add(24)?..optional.checked_add(32)?)?;
        (signature == b"PE\0\0" && magic == [0x0b, 0x02])
            .then(|| field.try_into().ok().map(u64::from_le_bytes))?
    };
    parse().ok_or_else(|| Fault::Input(format!("{} is no 64-bit EFI program", stub.display())))
}

/// Makes the file system that firmware reads: systemd-boot, its configuration, and the boot image.
///
/// # Errors
/// When a tool is missing or the content does not fit.
pub fn firmware_partition(
    loader: &Path,
    boot_image: &Path,
    version: &str,
    scratch: &Path,
) -> Result<PathBuf, Fault> {
    let esp = scratch.join("esp");
    File::create(&esp)
        .and_then(|file| file.set_len(recipe::ESP_BYTES))
        .map_err(Fault::file("write", &esp))?;
    MKFS.run([
        "-F".as_ref(),
        "32".as_ref(),
        "-n".as_ref(),
        "FERRO-ESP".as_ref(),
        "-i".as_ref(),
        "fe770001".as_ref(),
        esp.as_os_str(),
    ])?;
    let config = scratch.join("loader.conf");
    // No editor: whoever stands at the machine must not change the command line.
    std::fs::write(&config, "timeout 0\neditor no\n").map_err(Fault::file("write", &config))?;
    let folders = ["::EFI", "::EFI/BOOT", "::EFI/systemd", "::EFI/Linux", "::loader"];
    MMD.run(["-i".as_ref(), esp.as_os_str()].into_iter().chain(folders.iter().map(AsRef::as_ref)))?;
    let boot_name = format!("::EFI/Linux/ferrostack-{version}.efi");
    for (file, target) in [
        (loader, "::EFI/BOOT/BOOTX64.EFI"),
        (loader, "::EFI/systemd/systemd-bootx64.efi"),
        (config.as_path(), "::loader/loader.conf"),
        (boot_image, boot_name.as_str()),
    ] {
        MCOPY.run(["-i".as_ref(), esp.as_os_str(), file.as_os_str(), target.as_ref()])?;
    }
    Ok(esp)
}

/// Writes the disk image from its two partitions.
///
/// # Errors
/// When it would be larger than the promise ([`recipe::SIZE_LIMIT`]) or a tool fails.
pub fn assemble(esp: &Path, root: &Path, out: &Path) -> Result<u64, Fault> {
    let size = |path: &Path| path.metadata().map(|data| data.len()).map_err(Fault::file("read", path));
    let root_bytes = size(root)?.next_multiple_of(MIB);
    let esp_bytes = size(esp)?;
    // One MiB before for the table, one behind for its copy.
    let total = MIB + esp_bytes + root_bytes + MIB;
    if total > recipe::SIZE_LIMIT {
        return Err(Fault::TooLarge {
            what: "the appliance image".into(),
            bytes: total,
            limit: recipe::SIZE_LIMIT,
        });
    }
    let mut disk = File::create(out).map_err(Fault::file("write", out))?;
    disk.set_len(total).map_err(Fault::file("write", out))?;
    let script = format!(
        "label: gpt\nlabel-id: 6f9619ff-8b86-4d01-b42d-00cf4fc96500\n\
         start=1MiB, size={}, type=U, name=ferro-esp, uuid=6f9619ff-8b86-4d01-b42d-00cf4fc96501\n\
         size={}, type={LINUX_ROOT}, name={}, uuid=6f9619ff-8b86-4d01-b42d-00cf4fc96502\n",
        esp_bytes / SECTOR,
        root_bytes / SECTOR,
        recipe::ROOT_SLOT
    );
    let script_file = out.with_extension("sfdisk");
    std::fs::write(&script_file, script).map_err(Fault::file("write", &script_file))?;
    let input = File::open(&script_file).map_err(Fault::file("read", &script_file))?;
    let mut sfdisk = std::process::Command::new(SFDISK.name);
    sfdisk.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(out);
    SFDISK.run_with_input(sfdisk, input)?;
    for (file, offset) in [(esp, MIB), (root, MIB + esp_bytes)] {
        let mut input = File::open(file).map_err(Fault::file("read", file))?;
        disk.seek(SeekFrom::Start(offset)).map_err(Fault::file("write", out))?;
        copy_sparse(&mut input, &mut disk).map_err(Fault::file("write", out))?;
    }
    Ok(total)
}

/// Copies without writing blocks of zeros, so that holes of a mostly empty file system stay holes.
fn copy_sparse(input: &mut impl std::io::Read, output: &mut File) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let part = &buffer[..count];
        if part.iter().all(|byte| *byte == 0) {
            output.seek(SeekFrom::Current(i64::try_from(count).unwrap_or(0)))?;
        } else {
            output.write_all(part)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{assemble, image_base};
    use std::io::{Read, Seek, SeekFrom};

    #[test]
    fn a_file_that_is_no_program_is_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let file = dir.path().join("x");
        for content in [&b""[..], b"MZ", &[0xff; 0x40], &[0; 4096]] {
            std::fs::write(&file, content).expect("write");
            assert!(image_base(&file).is_err());
        }
    }

    #[test]
    fn partitions_land_where_the_table_says() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (esp, root, out) = (dir.path().join("esp"), dir.path().join("root"), dir.path().join("disk"));
        std::fs::write(&esp, vec![0xe5; 2 << 20]).expect("write");
        std::fs::write(&root, vec![0xa0; 3_000_000]).expect("write");
        let total = assemble(&esp, &root, &out).expect("assembled");
        assert_eq!(total, (1 + 2 + 3 + 1) << 20);
        let mut disk = std::fs::File::open(&out).expect("open");
        let mut entry = [0; 16];
        // Second entry of the table: first and last sector at offset 32.
        disk.seek(SeekFrom::Start(1024 + 128 + 32)).and_then(|_| disk.read_exact(&mut entry)).expect("read");
        let first = u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"));
        let mut byte = [0];
        disk.seek(SeekFrom::Start(first * 512)).and_then(|_| disk.read_exact(&mut byte)).expect("read");
        assert_eq!(byte, [0xa0]);
        disk.seek(SeekFrom::Start(first * 512 - 1)).and_then(|_| disk.read_exact(&mut byte)).expect("read");
        assert_eq!(byte, [0xe5]);
    }
}
