//! A small ISO 9660 file system with Rock Ridge names (Linux) and a Joliet tree (Windows): the config drive.
//!
//! ```text
//! sector 16       primary volume descriptor
//! sector 17       supplementary (Joliet) descriptor
//! sector 18       terminator
//! sector 19..     path tables (little, big) of both trees, directories of both trees, file contents (shared)
//! ```

use std::collections::BTreeMap;
use wire::Refused;

const SECTOR: usize = 2048;
/// Most files and directories.
const ENTRIES: usize = 1000;
/// Largest image in bytes; nova's config drives are 64 MiB.
const LIMIT: usize = 64 << 20;
/// Deepest directory, as the standard has it.
const DEPTH: usize = 8;

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<String, usize>,
    content: Option<Vec<u8>>,
    parent: usize,
    /// Name in the primary tree.
    short: String,
    /// First sector in the primary tree, and in the Joliet tree; for files both are the same.
    at: [usize; 2],
    /// Bytes of a directory's extent in either tree.
    length: [usize; 2],
}

/// Which tree is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    Primary = 0,
    Joliet = 1,
}

/// Builds the image.
///
/// # Errors
/// When a path is not usable, or there is too much of it.
pub fn build(label: &str, files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, Refused> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if label.is_empty() || label.len() > 16 || !label.bytes().all(usable) {
        return Err(Refused::invalid("a volume label has 1 to 16 letters, digits, '-' or '_'"));
    }
    let mut nodes = gather(files)?;
    // Parents come before children in this order, and siblings in the order of their names.
    let order = breadth_first(&nodes);
    let directories: Vec<usize> =
        order.iter().copied().filter(|index| nodes[*index].content.is_none()).collect();

    let mut next = 19;
    let mut tables = [(0, 0); 2];
    for tree in [Tree::Primary, Tree::Joliet] {
        let bytes = path_table(&nodes, &directories, tree, false).len();
        tables[tree as usize] = (next, bytes);
        next += 2 * bytes.div_ceil(SECTOR);
    }
    for tree in [Tree::Primary, Tree::Joliet] {
        for index in &directories {
            let bytes = directory(&nodes, *index, tree).len();
            nodes[*index].at[tree as usize] = next;
            nodes[*index].length[tree as usize] = bytes;
            next += bytes / SECTOR;
        }
    }
    for index in &order {
        if let Some(content) = &nodes[*index].content {
            let sectors = content.len().div_ceil(SECTOR);
            nodes[*index].at = [next; 2];
            next += sectors;
        }
    }
    if next * SECTOR > LIMIT {
        return Err(Refused::invalid(format!("the files need more than {} MiB", LIMIT >> 20))
            .remedy("give less user data or fewer files"));
    }

    let mut image = vec![0u8; next * SECTOR];
    let mut put = |sector: usize, bytes: &[u8]| {
        image[sector * SECTOR..sector * SECTOR + bytes.len()].copy_from_slice(bytes);
    };
    for tree in [Tree::Primary, Tree::Joliet] {
        put(16 + tree as usize, &descriptor(label, next, tables[tree as usize], &nodes[0], tree));
        let (at, bytes) = tables[tree as usize];
        put(at, &path_table(&nodes, &directories, tree, false));
        put(at + bytes.div_ceil(SECTOR), &path_table(&nodes, &directories, tree, true));
        for index in &directories {
            put(nodes[*index].at[tree as usize], &directory(&nodes, *index, tree));
        }
    }
    put(18, b"\xffCD001\x01");
    for index in order {
        if let Some(content) = &nodes[index].content {
            put(nodes[index].at[0], content);
        }
    }
    Ok(image)
}

fn gather(files: &[(String, Vec<u8>)]) -> Result<Vec<Node>, Refused> {
    let bad = |path: &str, why: &str| {
        let shown: String = path.chars().take(64).collect();
        Err(Refused::invalid(format!("'{shown}' cannot be a file of a config drive: {why}")))
    };
    let mut nodes = vec![Node::default()];
    for (path, content) in files {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() || parts.len() >= DEPTH {
            return bad(path, "it needs a name and at most seven levels");
        }
        let mut at = 0;
        for part in &parts {
            let printable = part.bytes().all(|byte| byte.is_ascii_graphic() && !b"*:;?\\".contains(&byte));
            if !printable || part.len() > 60 || *part == "." || *part == ".." {
                return bad(path, "names have 1 to 60 printable ASCII characters without * : ; ? \\");
            }
            if nodes[at].content.is_some() {
                return bad(path, "a part of it is a file");
            }
            at = match nodes[at].children.get(*part) {
                Some(child) => *child,
                None => {
                    let child = nodes.len();
                    nodes.push(Node { parent: at, ..Node::default() });
                    nodes[at].children.insert((*part).to_owned(), child);
                    child
                }
            };
            if nodes.len() > ENTRIES {
                return bad(path, "there are too many files");
            }
        }
        if nodes[at].content.is_some() || !nodes[at].children.is_empty() {
            return bad(path, "the path is there already");
        }
        nodes[at].content = Some(content.clone());
    }
    for index in 0..nodes.len() {
        let children: Vec<usize> = nodes[index].children.values().copied().collect();
        for (serial, child) in children.into_iter().enumerate() {
            // Unique, legal and in order; whoever reads the tree sees the Rock Ridge or Joliet name.
            let is_file = nodes[child].content.is_some();
            nodes[child].short = if is_file { format!("F{serial:07}.;1") } else { format!("D{serial:07}") };
        }
    }
    Ok(nodes)
}

fn breadth_first(nodes: &[Node]) -> Vec<usize> {
    let mut order = vec![0];
    let mut at = 0;
    while let Some(index) = order.get(at) {
        order.extend(nodes[*index].children.values());
        at += 1;
    }
    order
}

fn both32(number: usize) -> [u8; 8] {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
    [little[0], little[1], little[2], little[3], big[0], big[1], big[2], big[3]]
}

fn both16(number: u16) -> [u8; 4] {
    let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
    [little[0], little[1], big[0], big[1]]
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A fixed time: config drives of the same content are the same bytes.
const TIME: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];

fn record(name: &[u8], at: usize, length: usize, is_directory: bool, system: &[u8]) -> Vec<u8> {
    let pad = usize::from(name.len().is_multiple_of(2));
    let total = 33 + name.len() + pad + system.len();
    let total = total + total % 2;
    let mut record = Vec::with_capacity(total);
    record.extend([byte(total), 0]);
    record.extend(both32(at));
    record.extend(both32(length));
    record.extend(TIME);
    record.extend([if is_directory { 2 } else { 0 }, 0, 0]);
    record.extend(both16(1));
    record.push(byte(name.len()));
    record.extend(name);
    record.extend(std::iter::repeat_n(0, pad));
    record.extend(system);
    record.resize(total, 0);
    record
}

/// Rock Ridge fields: permissions, and the real name.
fn rock_ridge(is_directory: bool, links: usize, name: Option<&str>) -> Vec<u8> {
    let mut fields = b"PX\x24\x01".to_vec();
    fields.extend(both32(if is_directory { 0o40_555 } else { 0o100_444 }));
    fields.extend(both32(links));
    fields.extend(both32(0));
    fields.extend(both32(0));
    if let Some(name) = name {
        fields.extend([b'N', b'M', byte(name.len() + 5), 1, 0]);
        fields.extend(name.bytes());
    }
    fields
}

fn directory(nodes: &[Node], index: usize, tree: Tree) -> Vec<u8> {
    let node = &nodes[index];
    let (slot, rock) = (tree as usize, tree == Tree::Primary);
    let links =
        |node: &Node| 2 + node.children.values().filter(|child| nodes[**child].content.is_none()).count();
    let mut bytes = Vec::new();
    let mut add = |record: Vec<u8>| {
        // A record never crosses a sector.
        if bytes.len() % SECTOR + record.len() > SECTOR {
            bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        }
        bytes.extend(record);
    };
    for (name, target) in [(0u8, index), (1, node.parent)] {
        let target_node = &nodes[target];
        let mut system = Vec::new();
        if rock {
            if name == 0 && index == 0 {
                // The marks that say: system-use fields begin at once, and they are Rock Ridge's.
                system.extend(b"SP\x07\x01\xbe\xef\x00");
            }
            system.extend(rock_ridge(true, links(target_node), None));
            if name == 0 && index == 0 {
                system.extend(b"ER\x12\x01\x0a\x00\x00\x01RRIP_1991A");
            }
        }
        add(record(&[name], target_node.at[slot], target_node.length[slot], true, &system));
    }
    // Records are in the order of their names in this tree.
    let mut children: Vec<(Vec<u8>, &str, usize)> = node
        .children
        .iter()
        .map(|(name, child)| {
            let written = match tree {
                Tree::Primary => nodes[*child].short.clone().into_bytes(),
                Tree::Joliet if nodes[*child].content.is_some() => utf16(&format!("{name};1")),
                Tree::Joliet => utf16(name),
            };
            (written, name.as_str(), *child)
        })
        .collect();
    children.sort();
    for (written, name, child) in children {
        let child = &nodes[child];
        let is_directory = child.content.is_none();
        let length = child.content.as_ref().map_or(child.length[slot], Vec::len);
        let system = if rock {
            rock_ridge(is_directory, if is_directory { links(child) } else { 1 }, Some(name))
        } else {
            Vec::new()
        };
        add(record(&written, child.at[slot], length, is_directory, &system));
    }
    bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
    bytes
}

fn path_table(nodes: &[Node], directories: &[usize], tree: Tree, big: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in directories {
        let node = &nodes[*index];
        let name = match (*index, tree) {
            (0, _) => vec![0],
            (_, Tree::Primary) => node.short.clone().into_bytes(),
            (_, Tree::Joliet) => {
                let parent = &nodes[node.parent];
                let name = parent.children.iter().find(|(_, child)| **child == *index);
                utf16(name.map_or("", |(name, _)| name))
            }
        };
        let at = u32::try_from(node.at[tree as usize]).unwrap_or(u32::MAX);
        let place = directories.iter().position(|each| *each == node.parent).unwrap_or(0);
        let parent = u16::try_from(place + 1).unwrap_or(u16::MAX);
        bytes.extend([byte(name.len()), 0]);
        bytes.extend(if big { at.to_be_bytes() } else { at.to_le_bytes() });
        bytes.extend(if big { parent.to_be_bytes() } else { parent.to_le_bytes() });
        bytes.extend(&name);
        if name.len() % 2 == 1 {
            bytes.push(0);
        }
    }
    bytes
}

fn descriptor(label: &str, sectors: usize, table: (usize, usize), root: &Node, tree: Tree) -> Vec<u8> {
    let (at, bytes) = table;
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let text = |text: &str, width: usize| match tree {
        Tree::Primary => {
            let mut field = text.as_bytes().to_vec();
            field.resize(width, b' ');
            field
        }
        Tree::Joliet => {
            let mut field = utf16(text);
            while field.len() + 1 < width {
                field.extend([0, b' ']);
            }
            field.resize(width, 0);
            field
        }
    };
    let mut block = vec![if tree == Tree::Primary { 1 } else { 2 }];
    block.extend(b"CD001\x01\x00");
    block.extend(text("", 32));
    block.extend(text(label, 32));
    block.extend([0; 8]);
    block.extend(both32(sectors));
    let mut escape = if tree == Tree::Joliet { b"%/E".to_vec() } else { Vec::new() };
    escape.resize(32, 0);
    block.extend(escape);
    block.extend(both16(1));
    block.extend(both16(1));
    block.extend(both16(2048));
    block.extend(both32(bytes));
    block.extend(number(at).to_le_bytes());
    block.extend([0; 4]);
    block.extend(number(at + bytes.div_ceil(SECTOR)).to_be_bytes());
    block.extend([0; 4]);
    let mut root_record = record(&[0], root.at[tree as usize], root.length[tree as usize], true, &[]);
    root_record.truncate(34);
    block.extend(root_record);
    for width in [128, 128, 128, 128, 37, 37, 37] {
        block.extend(text("", width));
    }
    for _ in 0..2 {
        block.extend(b"2000010100000000\x00");
    }
    for _ in 0..2 {
        block.extend(b"0000000000000000\x00");
    }
    block.push(1);
    block.resize(SECTOR, 0);
    block
}

#[cfg(test)]
mod tests;
