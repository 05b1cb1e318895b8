//! `extlinux.conf`: labels with KERNEL, INITRD and APPEND lines.

use super::entry::Entry;

/// Reads a configuration file; `directory` is where it lies, which relative paths start from. Entries come in
/// the order in which they should be tried: the default first.
#[must_use]
pub fn parse(text: &str, directory: &str) -> Vec<Entry> {
    let mut default = None;
    let mut global_append = String::new();
    let mut labels: Vec<(String, Entry)> = Vec::new();
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let value = value.trim();
        match (key.to_ascii_lowercase().as_str(), labels.last_mut()) {
            ("default", None) => default = Some(value.to_owned()),
            ("append", None) => value.clone_into(&mut global_append),
            ("label", _) => {
                let entry = Entry { title: value.to_owned(), ..Entry::default() };
                labels.push((value.to_owned(), entry));
            }
            ("menu", Some((label, entry))) => {
                let (word, rest) = value.split_once([' ', '\t']).unwrap_or((value, ""));
                if word.eq_ignore_ascii_case("default") {
                    default = Some(label.clone());
                } else if word.eq_ignore_ascii_case("label") {
                    // `^` marks the hot key.
                    entry.title = rest.trim().replace('^', "");
                }
            }
            ("kernel" | "linux", Some((_, entry))) => entry.kernel = absolute(value, directory),
            ("initrd", Some((_, entry))) => {
                entry.initrds = value.split(',').map(|path| absolute(path, directory)).collect();
            }
            ("append", Some((_, entry))) => value.clone_into(&mut entry.command_line),
            _ => {}
        }
    }
    for (_, entry) in &mut labels {
        if entry.command_line.is_empty() {
            entry.command_line.clone_from(&global_append);
        } else if entry.command_line == "-" {
            entry.command_line.clear();
        }
        // SYSLINUX takes `initrd=` out of the command line too; the kernel ignores it, so it may stay there.
        let named = entry.command_line.split_whitespace().find_map(|word| word.strip_prefix("initrd="));
        if let (Some(paths), true) = (named, entry.initrds.is_empty()) {
            entry.initrds = paths.split(',').map(|path| absolute(path, directory)).collect();
        }
    }
    labels.retain(|(_, entry)| !entry.kernel.is_empty());
    labels.sort_by_key(|(label, _)| Some(label) != default.as_ref());
    labels.into_iter().map(|(_, entry)| entry).collect()
}

fn absolute(path: &str, directory: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{directory}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_default_comes_first_and_paths_become_absolute() {
        let text = "DEFAULT virt\nPROMPT 0\nLABEL old\n LINUX /boot/old\nLABEL virt\n  MENU LABEL Linux ^virt\n  LINUX vmlinuz-virt\n  \
                    INITRD initramfs-virt,extra\n  APPEND root=UUID=5 modules=ext4 console=ttyS0\n";
        let entries = parse(text, "/boot");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].title, "Linux virt");
        assert_eq!(entries[0].kernel, "/boot/vmlinuz-virt");
        assert_eq!(entries[0].initrds, ["/boot/initramfs-virt", "/boot/extra"]);
        assert_eq!(entries[0].command_line, "root=UUID=5 modules=ext4 console=ttyS0");
        assert_eq!(entries[1].kernel, "/boot/old");
    }

    #[test]
    fn initrd_in_append_counts() {
        let entries = parse("label a\nkernel k\nappend initrd=i root=/dev/vda1\n", "/x");
        assert_eq!(entries[0].initrds, ["/x/i"]);
    }
}
