//! Boot Loader Specification, type 1: `*.conf` files of `key value` lines, one per entry.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::entry::Entry;

/// One entry file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlsEntry {
    /// File name without `.conf` and without boot counters.
    pub id: String,
    sort_key: String,
    version: String,
    /// No boot attempts are left for it (`+0` in its file name): taken last.
    spent: bool,
    /// What it boots.
    pub entry: Entry,
}

/// Reads one entry file. `None` when it boots no Linux kernel. Variables in `options` and `initrd` (a habit
/// of Fedora's GRUB) are replaced from `environment`, by nothing when unknown.
#[must_use]
pub fn parse(file_name: &str, text: &str, environment: &HashMap<String, String>) -> Option<BlsEntry> {
    let stem = file_name.strip_suffix(".conf")?;
    let (id, counter) = stem.rsplit_once('+').unwrap_or((stem, ""));
    let spent = counter.split('-').next() == Some("0");
    let (mut kernel, mut initrds, mut options) = (None, Vec::new(), Vec::new());
    let (mut title, mut sort_key, mut version) = (String::new(), String::new(), String::new());
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((key, value)) = line.split_once([' ', '\t']) else { continue };
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut title),
            "sort-key" => value.clone_into(&mut sort_key),
            "version" => value.clone_into(&mut version),
            "linux" => kernel = Some(value.to_owned()),
            "initrd" => initrds.extend(expand(value, environment).split_whitespace().map(str::to_owned)),
            "options" => options.push(expand(value, environment)),
            // machine-id, architecture, grub_users, efi, ...: no part in booting a kernel directly.
            _ => {}
        }
    }
    let command_line = options.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    let title = if title.is_empty() { id.to_owned() } else { title };
    let entry = Entry { title, kernel: kernel?, initrds, command_line };
    Some(BlsEntry { id: id.to_owned(), sort_key, version, spent, entry })
}

/// Replaces `$name` and `${name}`.
fn expand(text: &str, environment: &HashMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let braced = after.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, tail) = braced.unwrap_or_else(|| {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
            after.split_at(end)
        });
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(environment.get(name).map_or("", String::as_str));
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// Puts entries in the order in which they should be tried: the one that `saved` (GRUB's environment) or
/// `default` (a pattern of `loader.conf`) names, then by the specification: entries with attempts left, sort
/// key, newest version.
pub fn order(entries: &mut [BlsEntry], saved: Option<&str>, default: Option<&str>) {
    let named = |entry: &BlsEntry| {
        let by_saved = saved.is_some_and(|saved| saved == entry.id || saved == entry.entry.title);
        let by_default = default.is_some_and(|pattern| {
            let file = format!("{}.conf", entry.id);
            matches(pattern, &entry.id) || matches(pattern, &file)
        });
        (by_saved, by_default)
    };
    entries.sort_by(|a, b| {
        named(b)
            .cmp(&named(a))
            .then(a.spent.cmp(&b.spent))
            .then(a.sort_key.is_empty().cmp(&b.sort_key.is_empty()))
            .then_with(|| a.sort_key.cmp(&b.sort_key))
            .then_with(|| compare_versions(&b.version, &a.version))
            .then_with(|| compare_versions(&b.id, &a.id))
    });
}

/// Shell pattern with `*` and `?`.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut from) = (0_usize, 0_usize);
    // Where to go on after the last `*` when what follows it does not fit.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || Some(byte) == text.get(from) => {
                at += 1;
                from += 1;
            }
            Some(_) | None => {
                let Some((star_at, star_from)) = star else { return false };
                star = Some((star_at, star_from + 1));
                at = star_at + 1;
                from = star_from + 1;
            }
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

/// Compares versions as people read them: runs of digits by value, `~` below everything.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let separator = |c: char| !c.is_ascii_alphanumeric() && c != '~';
        a = a.trim_start_matches(separator);
        b = b.trim_start_matches(separator);
        match (a.strip_prefix('~'), b.strip_prefix('~')) {
            (Some(rest_a), Some(rest_b)) => {
                (a, b) = (rest_a, rest_b);
                continue;
            }
            (Some(_), None) => return Ordering::Less,
            (None, Some(_)) => return Ordering::Greater,
            (None, None) => {}
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let digits = |c: char| c.is_ascii_digit();
        let run = |text: &'_ str, numeric: bool| {
            text.find(|c: char| if numeric { !digits(c) } else { !c.is_ascii_alphabetic() })
                .unwrap_or(text.len())
        };
        let numeric = (a.starts_with(digits), b.starts_with(digits));
        let found = match numeric {
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (true, true) | (false, false) => {
                let ((head_a, tail_a), (head_b, tail_b)) =
                    (a.split_at(run(a, numeric.0)), b.split_at(run(b, numeric.0)));
                (a, b) = (tail_a, tail_b);
                if numeric.0 {
                    let (x, y) = (head_a.trim_start_matches('0'), head_b.trim_start_matches('0'));
                    x.len().cmp(&y.len()).then_with(|| x.cmp(y))
                } else {
                    head_a.cmp(head_b)
                }
            }
        };
        if found.is_ne() {
            return found;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{compare_versions, matches, order, parse};
    use std::cmp::Ordering;
    use std::collections::HashMap;

    #[test]
    fn fedora_entry_with_variables() {
        let text = "title Fedora Linux (6.8.5)\nversion 6.8.5-301.fc40.x86_64\nlinux /vmlinuz-6.8.5\n\
                    initrd /initramfs-6.8.5.img $tuned_initrd\noptions $kernelopts ${extra}quiet\ngrub_users $grub_users\n";
        let environment = HashMap::from([("kernelopts".to_owned(), "root=UUID=1 ro".to_owned())]);
        let parsed = parse("abc-6.8.5+3-0.conf", text, &environment).unwrap();
        assert_eq!(parsed.id, "abc-6.8.5");
        assert_eq!(parsed.entry.kernel, "/vmlinuz-6.8.5");
        assert_eq!(parsed.entry.initrds, ["/initramfs-6.8.5.img"]);
        assert_eq!(parsed.entry.command_line, "root=UUID=1 ro quiet");
    }

    #[test]
    fn entries_without_a_kernel_are_none() {
        assert_eq!(parse("x.conf", "title Windows\nefi /EFI/x.efi\n", &HashMap::new()), None);
        assert_eq!(parse("x.txt", "linux /k\n", &HashMap::new()), None);
    }

    #[test]
    fn newest_first_rescue_and_spent_last_default_wins() {
        let make = |name: &str, version: &str| {
            parse(name, &format!("linux /k\nversion {version}\n"), &HashMap::new()).unwrap()
        };
        let mut all = vec![
            make("m-0-rescue-ab.conf", "0-rescue-ab"),
            make("m-6.9.conf", "6.9"),
            make("m-6.11+0-3.conf", "6.11"),
            make("m-6.10.conf", "6.10"),
        ];
        let ids = |all: &[super::BlsEntry]| all.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>();
        order(&mut all, None, None);
        assert_eq!(ids(&all), ["m-6.10", "m-6.9", "m-0-rescue-ab", "m-6.11"]);
        order(&mut all, None, Some("m-6.9*"));
        assert_eq!(ids(&all)[0], "m-6.9");
        order(&mut all, Some("m-0-rescue-ab"), Some("m-6.9*"));
        assert_eq!(ids(&all)[0], "m-0-rescue-ab");
    }

    #[test]
    fn versions_compare_as_people_read_them() {
        for (low, high) in
            [("6.9", "6.10"), ("6.1.0-9", "6.1.0-13"), ("1.0~rc1", "1.0"), ("a", "1"), ("", "0")]
        {
            assert_eq!(compare_versions(low, high), Ordering::Less, "{low} {high}");
            assert_eq!(compare_versions(high, low), Ordering::Greater, "{low} {high}");
        }
        assert_eq!(compare_versions("6.01", "6.1"), Ordering::Equal);
    }

    #[test]
    fn patterns() {
        assert!(matches("fedora-*", "fedora-1"));
        assert!(matches("*a*b?", "xxaxxbc"));
        assert!(!matches("a*b", "ac"));
        assert!(matches("", ""));
    }
}
