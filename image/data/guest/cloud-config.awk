# Turns the part of cloud-config that this image knows into a shell script: hostname, ssh_authorized_keys, runcmd and
# write_files in block style. Every other key is reported, not silently dropped.
function quote(text) { gsub(/'/, "'\\''", text); return "'" text "'" }
function plain(text,    first) {
    sub(/^[ \t]+/, "", text); sub(/[ \t\r]+$/, "", text)
    first = substr(text, 1, 1)
    if (length(text) > 1 && (first == "\"" || first == "'") && substr(text, length(text)) == first) {
        text = substr(text, 2, length(text) - 2)
        if (first == "\"") gsub(/\\"/, "\"", text); else gsub(/''/, "'", text)
    }
    return text
}
function indent(text) { match(text, /^ */); return RLENGTH }
# [a, b, "c d"] as separate quoted words.
function words(text,    out, word, i, c, mark) {
    text = substr(text, 2, length(text) - 2); out = ""; word = ""; mark = ""
    for (i = 1; i <= length(text) + 1; i++) {
        c = i > length(text) ? "," : substr(text, i, 1)
        if (mark == "" && c == ",") { out = out " " quote(plain(word)); word = "" }
        else { if (mark == "" && (c == "\"" || c == "'")) mark = c; else if (c == mark) mark = ""; word = word c }
    }
    return out
}
function item(text) {
    text = plain(text)
    if (key == "ssh_authorized_keys") print "echo " quote(text) " >>/home/ferro/.ssh/authorized_keys"
    else if (text ~ /^\[.*\]$/) print words(text)
    else print "sh -c " quote(text)
}
function flush_file() {
    if (path != "") {
        print "mkdir -p \"$(dirname " quote(path) ")\" && printf %s " quote(content) (append ? " >>" : " >") quote(path)
        if (mode != "") print "chmod " quote(mode) " " quote(path)
        if (owner != "") print "chown " quote(owner) " " quote(path)
    }
    path = content = mode = owner = ""; append = 0
}
function field(text,    name, value) {
    name = text; sub(/:.*/, "", name); name = plain(name)
    value = text; sub(/^[^:]*:/, "", value); value = plain(value)
    if (value ~ /^[|>][-+]?$/) { block = name; block_indent = -1; keep_newline = (value !~ /-/); if (name == "content") content = ""; return }
    if (name == "path") path = value
    else if (name == "content") content = value
    else if (name == "permissions") mode = value
    else if (name == "owner") owner = value
    else if (name == "append") append = (value == "true")
    else print "echo " quote("cloud-config: write_files field " name " is not known to this image")
}
block != "" {
    if ($0 ~ /^[ \t\r]*$/) { pending = pending "\n"; next }
    if (block_indent < 0 && indent($0) > field_indent) block_indent = indent($0)
    if (block_indent >= 0 && indent($0) >= block_indent) {
        line = substr($0, block_indent + 1)
        if (block == "content") content = content pending line "\n"
        else script = script pending line "\n"
        pending = ""
        next
    }
    if (block == "content" && !keep_newline) sub(/\n$/, "", content)
    if (block == "script") { print "sh -c " quote(script); script = "" }
    block = ""; pending = ""
}
/^[ \t]*(#|\r?$)/ { next }
/^[A-Za-z_]/ {
    flush_file()
    key = $0; sub(/:.*/, "", key)
    value = $0; sub(/^[^:]*:/, "", value); value = plain(value)
    if (key == "hostname" && value != "") print "echo " quote(value) " >/etc/hostname && hostname " quote(value)
    else if (key == "preserve_hostname" || key == "manage_etc_hosts") ;
    else if (key !~ /^(ssh_authorized_keys|runcmd|write_files)$/) print "echo " quote("cloud-config: " key " is not known to this image")
    else if (value ~ /^\[.+\]$/ && key == "ssh_authorized_keys") print "for k in" words(value) "; do echo \"$k\" >>/home/ferro/.ssh/authorized_keys; done"
    next
}
key == "runcmd" || key == "ssh_authorized_keys" {
    if ($0 ~ /^ *- *[|>][-+]? *$/) { block = "script"; block_indent = -1; field_indent = indent($0); next }
    if ($0 ~ /^ *- /) { text = $0; sub(/^ *- /, "", text); item(text) }
    next
}
key == "write_files" {
    text = $0; field_indent = indent($0)
    if (text ~ /^ *- /) { flush_file(); sub(/^ *- */, "", text); field_indent += 2 }
    field(text)
}
END {
    if (block == "content" && !keep_newline) sub(/\n$/, "", content)
    if (block == "script") print "sh -c " quote(script)
    flush_file()
}
