//! From an image to its kernel, initial RAM disk and command line.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use super::disk::{Disk, Window};
use super::entry::Entry;
use super::fat::Fat;
use super::fs::{BootFs, Ext, FsError, OpenFile};
use super::partitions::{Partition, partitions};
use super::probe::{Kind, probe};
use super::xfs::Xfs;
use super::{Found, Trouble, bls, extlinux, grub};

/// Largest kernel, in bytes.
pub const MAX_KERNEL: u64 = 128 << 20;
/// Largest initial RAM disk (all its files together), in bytes.
pub const MAX_INITRD: u64 = 512 << 20;
/// Longest command line, in bytes: x86 Linux has room for 2048 with the final NUL.
pub const MAX_COMMAND_LINE: usize = 2047;

/// Largest configuration file, in bytes.
const MAX_TEXT: u64 = 1 << 20;
/// Most entry files that are read.
const MAX_ENTRY_FILES: usize = 256;
/// Most initial RAM disk files of one entry.
const MAX_INITRDS: usize = 32;
/// Longest text from the image in the answer, in characters.
const MAX_QUOTE: usize = 200;

/// A partition whose file system can be read.
struct System {
    number: u32,
    fs: Box<dyn BootFs>,
}

/// Reads one kind of entries from a file system, in the order to try them; adds what went wrong to the notes.
type EntryReader = fn(&dyn BootFs, &mut Vec<String>) -> Vec<Entry>;

/// Finds what the disk boots by default and copies it: the kernel to `kernel`, the initial RAM disk to
/// `initrd` (nothing when the entry has none).
///
/// # Errors
/// When there is nothing to boot, or what there is cannot be read; says what was found instead.
pub fn find(disk: Arc<dyn Disk>, kernel: &mut dyn Write, initrd: &mut dyn Write) -> Result<Found, Trouble> {
    let mut notes = Vec::new();
    let systems = open_all(partitions(&Window::whole(disk)), &mut notes);
    let readers: [EntryReader; 3] = [from_bls, from_grub, from_extlinux];
    for reader in readers {
        for system in &systems {
            let mut own = Vec::new();
            let entries = reader(system.fs.as_ref(), &mut own);
            notes.extend(own.into_iter().map(|note| format!("partition {}: {note}", system.number)));
            for entry in entries {
                match locate(&systems, system, &entry) {
                    Ok(files) => return copy(files, system.number, &entry, kernel, initrd),
                    Err(why) => notes.push(format!("partition {}: {why}", system.number)),
                }
            }
        }
    }
    for system in &systems {
        let unified = system.fs.list("/EFI/Linux").unwrap_or_default();
        if unified.iter().any(|name| name.to_ascii_lowercase().ends_with(".efi")) {
            notes.push(format!(
                "partition {} holds unified kernel images, which only UEFI firmware starts",
                system.number
            ));
        }
    }
    // They quote the image, which can make them as long as it likes.
    let notes = notes.iter().take(24).map(|note| clean(note)).collect();
    Err(Trouble::NoEntry { notes })
}

fn open_all(partitions: Vec<Partition>, notes: &mut Vec<String>) -> Vec<System> {
    let mut systems = Vec::new();
    for Partition { number, window } in partitions {
        let (name, opened) = match probe(&window) {
            Kind::Ext => ("ext2/3/4", Ext::new(window).map(|fs| Box::new(fs) as Box<dyn BootFs>)),
            Kind::Xfs => ("XFS", Xfs::new(window).map(|fs| Box::new(fs) as Box<dyn BootFs>)),
            Kind::Fat => ("FAT", Fat::new(window).map(|fs| Box::new(fs) as Box<dyn BootFs>)),
            Kind::Other(name) => {
                notes.push(format!("partition {number} is {name}, which cannot be read here"));
                continue;
            }
            Kind::Nothing => continue,
            Kind::Unknown => {
                notes.push(format!("partition {number} holds nothing known"));
                continue;
            }
        };
        match opened {
            Ok(fs) => {
                notes.push(format!("partition {number} is {name}"));
                systems.push(System { number, fs });
            }
            Err(error) => notes.push(format!("partition {number} is {name}, but cannot be read: {error}")),
        }
    }
    systems
}

/// Reads a file that may be missing; other trouble becomes a note.
fn text(fs: &dyn BootFs, path: &str, notes: &mut Vec<String>) -> Option<String> {
    match fs.text(path, MAX_TEXT) {
        Ok(text) => Some(text),
        Err(FsError::Missing) => None,
        Err(FsError::Broken(why)) => {
            notes.push(format!("{path}: {why}"));
            None
        }
    }
}

const GRUB_DIRECTORIES: [&str; 4] = ["/boot/grub", "/boot/grub2", "/grub", "/grub2"];

fn grub_environment(
    fs: &dyn BootFs,
    directories: &[&str],
    notes: &mut Vec<String>,
) -> HashMap<String, String> {
    let found = directories.iter().find_map(|directory| text(fs, &format!("{directory}/grubenv"), notes));
    found.map(|text| grub::environment(&text)).unwrap_or_default()
}

fn from_bls(fs: &dyn BootFs, notes: &mut Vec<String>) -> Vec<Entry> {
    for base in ["", "/boot"] {
        let directory = format!("{base}/loader/entries");
        let names = match fs.list(&directory) {
            Ok(names) => names,
            Err(FsError::Missing) => continue,
            Err(FsError::Broken(why)) => {
                notes.push(format!("{directory}: {why}"));
                continue;
            }
        };
        let environment = grub_environment(fs, &GRUB_DIRECTORIES, notes);
        let mut entries: Vec<bls::BlsEntry> = names
            .iter()
            .filter(|name| name.ends_with(".conf"))
            .take(MAX_ENTRY_FILES)
            .filter_map(|name| {
                bls::parse(name, &text(fs, &format!("{directory}/{name}"), notes)?, &environment)
            })
            .collect();
        let loader = text(fs, &format!("{base}/loader/loader.conf"), notes).unwrap_or_default();
        let default = loader.lines().find_map(|line| line.trim().strip_prefix("default ")).map(str::trim);
        let saved = environment.get("next_entry").filter(|saved| !saved.is_empty());
        let saved = saved.or_else(|| environment.get("saved_entry")).map(String::as_str);
        bls::order(&mut entries, saved, default);
        if !entries.is_empty() {
            return entries.into_iter().map(|entry| entry.entry).collect();
        }
    }
    Vec::new()
}

fn from_grub(fs: &dyn BootFs, notes: &mut Vec<String>) -> Vec<Entry> {
    let vendors = fs.list("/EFI").unwrap_or_default();
    let vendors = vendors.iter().take(16).filter(|name| !name.starts_with('.'));
    let directories = GRUB_DIRECTORIES.iter().map(|path| (*path).to_owned());
    for directory in directories.chain(vendors.map(|name| format!("/EFI/{name}"))) {
        let Some(config) = text(fs, &format!("{directory}/grub.cfg"), notes) else { continue };
        let environment = grub_environment(fs, &[&directory], notes);
        let exists = |path: &str| fs.open(path).is_ok();
        let entries = grub::parse::parse(&config).map_err(|error| error.to_string()).and_then(|statements| {
            grub::run::run(&statements, &environment, &directory, &exists).map_err(|error| error.to_string())
        });
        match entries {
            Ok(entries) if !entries.is_empty() => return entries,
            Ok(_) => {}
            Err(why) => notes.push(format!("{directory}/grub.cfg: {why}")),
        }
    }
    Vec::new()
}

fn from_extlinux(fs: &dyn BootFs, notes: &mut Vec<String>) -> Vec<Entry> {
    for (directory, name) in [
        ("/extlinux", "extlinux.conf"),
        ("/boot/extlinux", "extlinux.conf"),
        ("/boot", "extlinux.conf"),
        ("", "extlinux.conf"),
        ("/boot/syslinux", "syslinux.cfg"),
        ("/syslinux", "syslinux.cfg"),
        ("/boot/syslinux", "extlinux.conf"),
        ("", "syslinux.cfg"),
    ] {
        if let Some(config) = text(fs, &format!("{directory}/{name}"), notes) {
            let entries = extlinux::parse(&config, directory);
            if !entries.is_empty() {
                return entries;
            }
        }
    }
    Vec::new()
}

/// The open files of an entry.
struct Files<'a> {
    kernel: OpenFile<'a>,
    initrds: Vec<OpenFile<'a>>,
}

/// Opens all that an entry names: on its own partition (as given, or below `/boot`), else on another one,
/// which GRUB's `search` would have chosen.
fn locate<'a>(systems: &'a [System], own: &'a System, entry: &Entry) -> Result<Files<'a>, String> {
    let open = |path: &str| -> Result<OpenFile<'a>, String> {
        let path = grub::run::without_device(path);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let others = systems.iter().filter(|system| system.number != own.number);
        for system in std::iter::once(own).chain(others) {
            for path in [path.clone(), format!("/boot{path}")] {
                match system.fs.open(&path) {
                    Ok(file) => return Ok(file),
                    Err(FsError::Missing) => {}
                    Err(FsError::Broken(why)) => return Err(format!("cannot read {path}: {why}")),
                }
            }
        }
        Err(format!("the entry \"{}\" names {path}, which is not there", clean(&entry.title)))
    };
    if entry.initrds.len() > MAX_INITRDS {
        return Err(format!("the entry \"{}\" has more than {MAX_INITRDS} initrds", clean(&entry.title)));
    }
    let kernel = open(&entry.kernel)?;
    let initrds = entry.initrds.iter().map(|path| open(path)).collect::<Result<_, _>>()?;
    Ok(Files { kernel, initrds })
}

fn copy(
    files: Files<'_>,
    partition: u32,
    entry: &Entry,
    kernel: &mut dyn Write,
    initrd: &mut dyn Write,
) -> Result<Found, Trouble> {
    let command_line = entry.command_line.clone();
    if command_line.len() > MAX_COMMAND_LINE {
        return Err(Trouble::CommandLine { length: command_line.len() });
    }
    if command_line.chars().any(char::is_control) {
        return Err(Trouble::ControlCharacters);
    }
    copy_kernel(files.kernel, kernel)?;
    let has_initrd = !files.initrds.is_empty();
    let mut total = 0_u64;
    for file in files.initrds {
        // The kernel wants each archive to start at a multiple of 4.
        let pad = usize::try_from(total.next_multiple_of(4).saturating_sub(total)).unwrap_or(0);
        initrd.write_all([0; 4].get(..pad).unwrap_or_default()).map_err(Trouble::Write)?;
        total = total.saturating_add(pad as u64);
        let room = MAX_INITRD.saturating_sub(total);
        total = total.saturating_add(stream("initrd", file, room, MAX_INITRD, initrd)?);
    }
    Ok(Found { command_line, entry: clean(&entry.title), partition, has_initrd })
}

/// Bytes of the kernel that are looked at first.
const HEAD: usize = 0x206;

fn copy_kernel(mut file: OpenFile<'_>, into: &mut dyn Write) -> Result<(), Trouble> {
    let mut head = Vec::new();
    let taken = (&mut file.data).take(HEAD as u64).read_to_end(&mut head);
    taken.map_err(|source| Trouble::Read { what: "kernel", source })?;
    check_kernel(&head)?;
    into.write_all(&head).map_err(Trouble::Write)?;
    let room = MAX_KERNEL.saturating_sub(head.len() as u64);
    file.size = file.size.saturating_sub(head.len() as u64);
    stream("kernel", file, room, MAX_KERNEL, into)?;
    Ok(())
}

fn check_kernel(head: &[u8]) -> Result<(), Trouble> {
    let at = |from: usize, magic: &[u8]| head.get(from..).is_some_and(|rest| rest.starts_with(magic));
    let is = if at(0x202, b"HdrS") || at(0, b"\x7fELF") {
        return Ok(());
    } else if at(0x38, b"ARM\x64") {
        "a kernel for ARM"
    } else if at(0, b"MZ") {
        "an EFI program (a unified kernel image?)"
    } else {
        "neither a bzImage nor an ELF file"
    };
    Err(Trouble::NotAKernel { is })
}

/// Copies a file, at most `room` bytes; tells how many it were.
fn stream(
    what: &'static str,
    file: OpenFile<'_>,
    room: u64,
    limit: u64,
    into: &mut dyn Write,
) -> Result<u64, Trouble> {
    if file.size > room {
        return Err(Trouble::TooLarge { what, limit });
    }
    let mut data = file.data.take(room.saturating_add(1));
    let mut chunk = vec![0; 256 << 10];
    let mut total = 0_u64;
    loop {
        let got = match data.read(&mut chunk) {
            Ok(0) => return Ok(total),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Trouble::Read { what, source }),
        };
        total = total.saturating_add(got as u64);
        if total > room {
            return Err(Trouble::TooLarge { what, limit });
        }
        into.write_all(chunk.get(..got).unwrap_or_default()).map_err(Trouble::Write)?;
    }
}

/// A text from the image, fit for a log line.
fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_QUOTE).collect()
}
