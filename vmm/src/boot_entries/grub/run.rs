//! Running the statements.

use std::collections::HashMap;

use super::parse::{Piece, Statement, Word};
use crate::boot_entries::entry::Entry;

/// Most statements run for one file.
const MAX_STEPS: usize = 200_000;

/// Longest value of a variable and longest word, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// Most entries of all menus together.
const MAX_ENTRIES: usize = 512;

/// Why a file could not be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// It does not come to an end.
    #[error("it takes more than {MAX_STEPS} steps")]
    TooLong,
    /// It makes a text too long.
    #[error("it makes a text of more than {MAX_TEXT} bytes")]
    TooMuchText,
    /// It has too many entries.
    #[error("it has more than {MAX_ENTRIES} menu entries")]
    TooManyEntries,
}

/// A menu item.
struct Item<'a> {
    title: String,
    id: String,
    content: Content<'a>,
}

enum Content<'a> {
    Entry(&'a [Statement]),
    Submenu(Vec<Item<'a>>),
}

struct Machine<'e> {
    variables: HashMap<String, String>,
    environment: &'e HashMap<String, String>,
    exists: &'e dyn Fn(&str) -> bool,
    steps: usize,
    entries: usize,
    /// What the entry now run has given so far.
    found: Entry,
}

/// Runs a parsed file: its entries in the order in which they should be tried, the default first.
/// `environment` is the content of `grubenv`, `prefix` the directory of the file, and `exists` tells whether
/// a file is there.
///
/// # Errors
/// A file that goes beyond the limits.
pub fn run(
    statements: &[Statement],
    environment: &HashMap<String, String>,
    prefix: &str,
    exists: &dyn Fn(&str) -> bool,
) -> Result<Vec<Entry>, RunError> {
    let mut machine = Machine {
        variables: HashMap::new(),
        environment,
        exists,
        steps: 0,
        entries: 0,
        found: Entry::default(),
    };
    for (name, value) in [
        ("prefix", prefix),
        ("grub_platform", "pc"),
        ("grub_cpu", "i386"),
        ("menuentry_id_option", "--id"),
        ("feature_menuentry_id", "y"),
    ] {
        machine.variables.insert(name.to_owned(), value.to_owned());
    }
    let mut menu = Vec::new();
    machine.block(statements, &mut menu)?;
    // Ubuntu tries without an initial RAM disk first and falls back over a variable that only GRUB can save;
    // take the fallback, which always works.
    machine.variables.insert("initrdfail".to_owned(), "1".to_owned());
    let default = machine.variables.get("default").cloned().unwrap_or_default();
    let mut order = Vec::new();
    if let Some((title, body)) = choose(&menu, &default) {
        order.push((title, body));
    }
    flatten(&menu, &mut order);
    let mut entries: Vec<Entry> = Vec::new();
    for (title, body) in order {
        machine.found = Entry { title: title.to_owned(), ..Entry::default() };
        machine.block(body, &mut Vec::new())?;
        if !machine.found.kernel.is_empty() && !entries.contains(&machine.found) {
            entries.push(std::mem::take(&mut machine.found));
        }
    }
    Ok(entries)
}

/// Finds the entry that `default` names: `2`, `title`, `id`, or a path through submenus joined by `>`.
fn choose<'m, 'a>(menu: &'m [Item<'a>], default: &str) -> Option<(&'m str, &'a [Statement])> {
    let (head, rest) = default.split_once('>').unwrap_or((default, ""));
    // A title may itself hold `>`.
    let whole = |item: &&Item<'a>| !default.is_empty() && (item.title == default || item.id == default);
    let part = |item: &&Item<'a>| !head.is_empty() && (item.title == head || item.id == head);
    let by_number = || menu.get(if head.is_empty() { 0 } else { head.trim().parse().ok()? });
    let item = menu.iter().find(whole).or_else(|| menu.iter().find(part)).or_else(by_number)?;
    match &item.content {
        Content::Entry(body) => Some((&item.title, body)),
        Content::Submenu(items) => choose(items, rest),
    }
}

fn flatten<'m, 'a>(menu: &'m [Item<'a>], into: &mut Vec<(&'m str, &'a [Statement])>) {
    for item in menu {
        match &item.content {
            Content::Entry(body) => into.push((&item.title, body)),
            Content::Submenu(items) => flatten(items, into),
        }
    }
}

impl Machine<'_> {
    /// Runs statements; answers whether the last one succeeded.
    fn block<'a>(&mut self, statements: &'a [Statement], menu: &mut Vec<Item<'a>>) -> Result<bool, RunError> {
        let mut good = true;
        for statement in statements {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(RunError::TooLong);
            }
            match statement {
                Statement::Command(words) => {
                    let words = self.words(words)?;
                    good = self.command(&words)?;
                }
                Statement::If { arms, otherwise } => {
                    let mut chosen = otherwise;
                    for (condition, body) in arms {
                        if self.block(condition, menu)? {
                            chosen = body;
                            break;
                        }
                    }
                    self.block(chosen, menu)?;
                    good = true;
                }
                Statement::Menu { sub, arguments, body } => {
                    self.entries += 1;
                    if self.entries > MAX_ENTRIES {
                        return Err(RunError::TooManyEntries);
                    }
                    let (title, id) = title_and_id(self.words(arguments)?);
                    let content = if *sub {
                        let mut items = Vec::new();
                        self.block(body, &mut items)?;
                        Content::Submenu(items)
                    } else {
                        Content::Entry(body)
                    };
                    menu.push(Item { title, id, content });
                    good = true;
                }
                Statement::Skipped => good = true,
            }
        }
        Ok(good)
    }

    fn command(&mut self, words: &[String]) -> Result<bool, RunError> {
        let Some((name, arguments)) = words.split_first() else { return Ok(true) };
        match name.as_str() {
            "!" => return Ok(!self.command(arguments)?),
            "set" => self.assign(arguments.first()),
            "unset" => {
                for name in arguments {
                    self.variables.remove(name);
                }
            }
            "load_env" => {
                for (name, value) in self.environment {
                    if value.len() <= MAX_TEXT {
                        self.variables.insert(name.clone(), value.clone());
                    }
                }
            }
            "false" => return Ok(false),
            "[" => {
                let inner = arguments.split_last().filter(|(last, _)| *last == "]");
                return Ok(self.test(inner.map_or(arguments, |(_, inner)| inner)));
            }
            "test" => return Ok(self.test(arguments)),
            "linux" | "linux16" | "linuxefi" => {
                if let Some((kernel, options)) = arguments.split_first() {
                    self.found.kernel.clone_from(kernel);
                    self.found.command_line = options.iter().map(requote).collect::<Vec<_>>().join(" ");
                    self.found.initrds.clear();
                }
            }
            "initrd" | "initrd16" | "initrdefi" => {
                let paths = arguments.iter().filter(|word| !word.starts_with("--"));
                self.found.initrds = paths.cloned().collect();
            }
            // `name=value` by itself is `set`.
            _ if name.contains('=') => self.assign(Some(name)),
            // insmod, search, echo, terminal_output, functions, ...
            _ => {}
        }
        Ok(true)
    }

    fn assign(&mut self, word: Option<&String>) {
        if let Some((name, value)) = word.and_then(|word| word.split_once('=')) {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }

    /// The conditions of `[`: `-o` binds weaker than `-a`, `!` strongest.
    fn test(&self, words: &[String]) -> bool {
        words
            .split(|word| word == "-o")
            .any(|any| any.split(|word| word == "-a").all(|all| self.primary(all)))
    }

    fn primary(&self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["!", rest @ ..] => {
                let rest: Vec<String> = rest.iter().map(|word| (*word).to_owned()).collect();
                // Each level is one word shorter, so this ends; a word list is bounded by the file.
                rest.len() < 64 && !self.primary(&rest)
            }
            ["-n", text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            ["-s" | "-f" | "-e" | "-d", path] => (self.exists)(without_device(path)),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => a.parse::<i64>().ok() == b.parse::<i64>().ok(),
            [a, "-ne", b] => a.parse::<i64>().ok() != b.parse::<i64>().ok(),
            [text] => !text.is_empty(),
            _ => false,
        }
    }

    fn words(&mut self, words: &[Word]) -> Result<Vec<String>, RunError> {
        let mut out = Vec::new();
        let mut total = 0_usize;
        for word in words {
            self.steps += 1;
            let mut text = String::new();
            let mut some = false;
            for piece in word {
                match piece {
                    Piece::Text { text: more, quoted } => {
                        text.push_str(more);
                        some |= *quoted || !more.is_empty();
                    }
                    Piece::Variable { name, quoted } => {
                        let value = self.variables.get(name).map_or("", String::as_str);
                        if *quoted {
                            text.push_str(value);
                            some = true;
                        } else {
                            let mut parts = value.split_whitespace().peekable();
                            while let Some(part) = parts.next() {
                                text.push_str(part);
                                some = true;
                                if parts.peek().is_some() {
                                    out.push(std::mem::take(&mut text));
                                }
                            }
                        }
                    }
                }
                total = total.saturating_add(text.len());
                if text.len() > MAX_TEXT || total > 16 * MAX_TEXT || out.len() > MAX_TEXT {
                    return Err(RunError::TooMuchText);
                }
            }
            // Text counts as work too, so that large variables cannot stretch the limit on steps.
            self.steps += text.len() / 16;
            if some {
                out.push(text);
            }
        }
        Ok(out)
    }
}

/// A path without GRUB's device in front of it.
#[must_use]
pub fn without_device(path: &str) -> &str {
    path.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(path, |(_, path)| path)
}

fn requote(word: &String) -> String {
    if word.contains(char::is_whitespace) { format!("\"{word}\"") } else { word.clone() }
}

/// The title and the `--id` of a menu entry.
fn title_and_id(words: Vec<String>) -> (String, String) {
    let (mut title, mut id) = (None, String::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--id" => id = words.next().unwrap_or_default(),
            "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
            other => {
                if let Some(value) = other.strip_prefix("--id=") {
                    value.clone_into(&mut id);
                } else if !other.starts_with("--") && title.is_none() {
                    title = Some(word);
                }
            }
        }
    }
    (title.unwrap_or_default(), id)
}

#[cfg(test)]
mod tests {
    use super::run;
    use crate::boot_entries::entry::Entry;
    use crate::boot_entries::grub::{environment, parse::parse};
    use proptest::prelude::prop;
    use std::collections::HashMap;

    /// As Debian's `update-grub` writes it, cut down.
    const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
if loadfont $font ; then set gfxmode=auto
elif [ x = y ] ; then true ; fi
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian --class gnu $menuentry_id_option 'gnulinux-simple-1' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 1
	echo	'Loading Linux 6.1.0-13-cloud-amd64 ...'
	linux	/boot/vmlinuz-6.1.0-13-cloud-amd64 root=PARTUUID=abc ro  console=tty0 console=ttyS0,115200 "dyndbg=file x.c +p"
	initrd	/boot/initrd.img-6.1.0-13-cloud-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-1' {
	menuentry 'Debian, with Linux 6.1.0-13' --class x $menuentry_id_option 'adv-13' {
		linux	/boot/vmlinuz-6.1.0-13-cloud-amd64 root=PARTUUID=abc ro
	}
	menuentry 'Debian, with Linux 6.1.0-9' $menuentry_id_option 'adv-9' {
		linux	/boot/vmlinuz-6.1.0-9-cloud-amd64 root=PARTUUID=abc ro
		initrd	/boot/initrd.img-6.1.0-9-cloud-amd64 /boot/more.img
	}
}
"#;

    const UBUNTU: &str = r#"
if [ "${initrdfail}" = 2 ]; then
   set initrdfail=
elif [ "${initrdfail}" = 1 ]; then
   set next_entry="${prev_entry}"
fi
set default="0"
menuentry 'Ubuntu' --class ubuntu $menuentry_id_option 'simple' {
	recordfail
	if [ "${initrdfail}" = 1 ]; then
	  linux	/vmlinuz-6.8 root=PARTUUID=u ro  console=tty1 console=ttyS0
	  initrd	/initrd.img-6.8
	else
	  linux	/vmlinuz-6.8 root=PARTUUID=u ro  console=tty1 console=ttyS0 panic=-1
	fi
	initrdfail
}
"#;

    /// What else Ubuntu's and Fedora's files do before their entries.
    const PRELUDE: &str = r#"
function gfxmode {
	set gfxpayload="${1}"
	if [ "${1}" = "keep" ]; then
		set vt_handoff=vt.handoff=7
	else
		set vt_handoff=
	fi
}
for x in "a b" c; do
  insmod $x
done
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then set linux_gfx_mode=keep
    elif hwmatch ${prefix}/gfxblacklist.txt 3; then
      if [ ${match} = 0 ]; then set linux_gfx_mode=keep; else set linux_gfx_mode=text; fi
    fi
  else
    set linux_gfx_mode=keep
  fi
fi
export linux_gfx_mode
kernelopts="root=UUID=7 ro" # a plain assignment
if ! [ -f /nothing -o -z "x" -a -n "" ]; then chosen=yes; fi
menuentry "A \"quoted\" $chosen" --unrestricted --hotkey=a {
	gfxmode $linux_gfx_mode
	linux ($root)/vmlinuz $kernelopts $vt_handoff \
	  quiet
	initrd ($root)/initrd $tuned_initrd
}
"#;

    #[test]
    fn functions_loops_conditions_and_splitting() {
        let all = entries(PRELUDE, "");
        let expected = Entry {
            title: "A \"quoted\" yes".to_owned(),
            kernel: "/vmlinuz".to_owned(),
            initrds: vec!["/initrd".to_owned()],
            command_line: "root=UUID=7 ro quiet".to_owned(),
        };
        let all: Vec<Entry> = all
            .into_iter()
            .map(|entry| Entry {
                kernel: super::without_device(&entry.kernel).to_owned(),
                initrds: entry.initrds.iter().map(|path| super::without_device(path).to_owned()).collect(),
                ..entry
            })
            .collect();
        assert_eq!(all, [expected]);
    }

    fn entries(text: &str, grubenv: &str) -> Vec<Entry> {
        run(&parse(text).unwrap(), &environment(grubenv), "/boot/grub", &|path| path == "/boot/grub/grubenv")
            .unwrap()
    }

    #[test]
    fn debian_default() {
        let all = entries(DEBIAN, "# GRUB Environment Block\n####");
        assert_eq!(all[0].title, "Debian GNU/Linux");
        assert_eq!(all[0].kernel, "/boot/vmlinuz-6.1.0-13-cloud-amd64");
        assert_eq!(all[0].initrds, ["/boot/initrd.img-6.1.0-13-cloud-amd64"]);
        assert_eq!(
            all[0].command_line,
            "root=PARTUUID=abc ro console=tty0 console=ttyS0,115200 \"dyndbg=file x.c +p\""
        );
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn debian_with_a_saved_choice_in_a_submenu() {
        for choice in ["gnulinux-advanced-1>adv-9", "1>1", "Advanced options for Debian GNU/Linux>1"] {
            let all = entries(DEBIAN, &format!("# GRUB Environment Block\nnext_entry={choice}\n####"));
            assert_eq!(all[0].kernel, "/boot/vmlinuz-6.1.0-9-cloud-amd64", "{choice}");
            assert_eq!(all[0].initrds.len(), 2);
        }
    }

    #[test]
    fn a_default_that_does_not_exist_falls_back_to_the_first() {
        let all = entries(DEBIAN, "next_entry=gone\n");
        assert_eq!(all[0].title, "Debian GNU/Linux");
    }

    #[test]
    fn ubuntu_boots_with_its_initrd() {
        let all = entries(UBUNTU, "");
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].initrds, ["/initrd.img-6.8"]);
        assert_eq!(all[0].command_line, "root=PARTUUID=u ro console=tty1 console=ttyS0");
    }

    #[test]
    fn doubling_variables_end() {
        let text = format!("set a=xxxxxxxx\n{}", "set a=$a$a\n".repeat(100));
        assert!(run(&parse(&text).unwrap(), &HashMap::new(), "", &|_| false).is_err());
    }

    #[test]
    fn deep_nesting_and_open_blocks_are_refused() {
        assert!(parse(&"if true; then\n".repeat(10_000)).is_err());
        assert!(parse("menuentry x {\n linux /a\n").is_err());
        assert!(parse("}\n}\nfi\n").is_ok());
    }

    proptest::proptest! {
        #[test]
        fn any_text_ends(words in prop::collection::vec(
            prop::sample::select(vec![
                "if", "then", "else", "elif", "fi", "menuentry", "submenu", "{", "}", "\n", ";", "set", "a=$a$b", "b=1", "$a",
                "\"$b", "'", "[", "]", "!", "-s", "=", "linux", "initrd", "/k", "function", "for", "do", "done", "\\", "load_env", "default=1>2",
            ]), 0..200)) {
            if let Ok(statements) = parse(&words.join(" ")) {
                let _ = run(&statements, &HashMap::new(), "", &|_| true);
            }
        }
    }
}
