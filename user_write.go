package main

// How berth user changes users.d. A file of its own, beside user.go, for trust: it is the
// only part of berth that writes there, with root's rights mostly, so the rules (nobody
// ever sees half a file, owner and mode let the daemon read and no one else, what people
// wrote by hand stays) are in one piece. All that is written is first read back by
// parseUserFile. It must not know flags, passwords or terminals.

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"

	"github.com/pelletier/go-toml/v2/unstable"
	"golang.org/x/sys/unix"
)

// lock keeps a second berth user out until unlock is called. With create, the users
// directory is made where it is missing: its group that of the state directory, so
// that a daemon which is not root can read it.
func (c *userCommand) lock(create bool) (unlock func(), err error) {
	dir := c.users.dir
	if _, err := os.Stat(dir); create && errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, errorf("make the users directory: %w", err)
		}
		if st, err := os.Stat(c.users.stateDir); err == nil && os.Geteuid() == 0 {
			if err := os.Chown(dir, -1, int(st.Sys().(*syscall.Stat_t).Gid)); err != nil {
				return nil, errorf("give the users directory its group: %w", err)
			}
		}
	}
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, c.unknown(nil)
	}
	if err != nil {
		return nil, errorf("open the users directory: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, errorf("lock %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}

// unknown says that there is no such user, and whom may have been meant.
func (c *userCommand) unknown(known []string) error {
	if len(known) == 0 {
		return errorf("no user %q in %s, and no other; make one with berth user add %s", c.name, c.users.dir, c.name)
	}
	return errorf("no user %q in %s; %s", c.name, c.users.dir, nearestWord(c.name, known))
}

// read is the bytes of the user's file.
func (c *userCommand) read() ([]byte, error) {
	data, _, _, err := c.users.readUserFile(c.name)
	if errors.Is(err, fs.ErrNotExist) {
		known, err := c.users.list()
		if err != nil {
			return nil, err
		}
		return nil, c.unknown(known)
	}
	if err != nil && !errors.As(err, new(*fs.PathError)) {
		err = errorf("%s: %w", c.users.path(c.name), err)
	}
	return data, err
}

// edited is data with the edits made, if that is a valid file of a user who does not
// take another's uid.
func (c *userCommand) edited(data []byte) ([]byte, error) {
	edits := maps.Clone(c.edits)
	if len(c.shares) > 0 {
		var now struct {
			Shares map[string]shareConfig `toml:"shares"`
		}
		decodeStrict("", data, &now) // other keys are unknown to it, which is no matter here
		if now.Shares == nil {
			now.Shares = map[string]shareConfig{}
		}
		for name, path := range c.shares {
			if path == "" {
				delete(now.Shares, name)
				continue
			}
			path, write := strings.CutSuffix(path, ":rw")
			now.Shares[name] = shareConfig{path, write}
		}
		edits["shares"] = tomlShares(now.Shares)
	}
	data, err := editUserFile(data, edits)
	if err != nil {
		return nil, errorf("%s: %w; mend it by hand", c.users.path(c.name), err)
	}
	u, errs := parseUserFile(c.users.path(c.name), c.name, data, c.users.dir, c.users.stateDir)
	if len(errs) > 0 {
		return nil, errs
	}
	if u.UID != nil {
		set, _ := c.users.readAll()
		if other := set.byUID[*u.UID]; other != nil && other.Name != c.name {
			return nil, c.users.uidTaken(u, other)
		}
	}
	return data, nil
}

// tomlShares is the inline table of shares, "" for none.
func tomlShares(shares map[string]shareConfig) string {
	var items []string
	for _, name := range slices.Sorted(maps.Keys(shares)) {
		key := name
		if !tomlBareKey.MatchString(name) {
			key = tomlString(name)
		}
		items = append(items, fmt.Sprintf("%s = { path = %s, write = %t }", key, tomlString(shares[name].Path), shares[name].Write))
	}
	if items == nil {
		return ""
	}
	return "{ " + strings.Join(items, ", ") + " }"
}

// write replaces the user's file by data with the edits made, so that at any moment
// there is the old file or the new one. The daemon must be able to read it: the owner
// is that of the old file, or of the directory for a new one, and the mode 0600; where
// the directory is root's and a group may read it (root:berth 0750), that group may
// read the file too.
func (c *userCommand) write(data []byte) error {
	data, err := c.edited(data)
	if err != nil {
		return err
	}
	path := c.users.path(c.name)
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // the link stays, and what it points to is replaced
	}
	dir := filepath.Dir(path)
	mode := fs.FileMode(0o600)
	info, err := os.Stat(path)
	if err == nil {
		mode = info.Mode().Perm() &^ 0o007
	} else if info, err = os.Stat(dir); err != nil {
		return err
	} else if st := info.Sys().(*syscall.Stat_t); st.Uid == 0 && st.Gid != 0 && info.Mode().Perm()&0o040 != 0 {
		mode = 0o640
	}
	owner := info.Sys().(*syscall.Stat_t)

	f, err := os.CreateTemp(dir, "."+c.name+"-*") // mode 0600; the loader ignores the dot
	if err != nil {
		return errorf("write the user file: %w", err)
	}
	defer os.Remove(f.Name()) // in vain once it is renamed
	defer f.Close()
	if int(owner.Uid) != os.Geteuid() || int(owner.Gid) != os.Getegid() {
		if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
			fmt.Fprintf(c.stderr, "berth user: warning: %s belongs to you and not to uid %d, gid %d; a daemon that runs as another user cannot read it\n", path, owner.Uid, owner.Gid)
		}
	}
	if _, err := f.Write(data); err != nil {
		return errorf("write the user file: %w", err)
	}
	if err := f.Chmod(mode); err != nil {
		return errorf("write the user file: %w", err)
	}
	if err := f.Sync(); err != nil {
		return errorf("write the user file: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errorf("write the user file: %w", err)
	}
	return syncUserDir(dir)
}

// syncUserDir makes names that were made or removed in dir hold over a power loss.
func syncUserDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return errorf("sync %s: %w", dir, err)
	}
	return nil
}

// --- editing by line ---

// tomlStatement is a line of TOML (or more, for a long array): a key with its value, or
// a table header. The offsets are into the file.
type tomlStatement struct {
	keys       []string
	table      bool // a header, and keys is its name
	root       bool // a key above all headers
	start, end int  // from the key's first byte to behind the value
	value      int  // where the value begins
}

// tomlStatements lists what is in data; the error has a line.
func tomlStatements(data []byte) ([]tomlStatement, error) {
	var list []tomlStatement
	var p unstable.Parser
	p.Reset(data)
	root := true
	for p.NextExpression() {
		e := p.Expression()
		s := tomlStatement{table: e.Kind == unstable.Table || e.Kind == unstable.ArrayTable}
		if !s.table && e.Kind != unstable.KeyValue {
			continue
		}
		s.start = -1
		for k := e.Key(); k.Next(); {
			n := k.Node()
			s.keys = append(s.keys, string(n.Data))
			if s.start < 0 {
				s.start = int(n.Raw.Offset)
			}
			s.end = int(n.Raw.Offset + n.Raw.Length)
		}
		if root = root && !s.table; root {
			s.root = true
		}
		if !s.table {
			s.value = s.end + bytes.IndexByte(data[s.end:], '=') + 1
			s.value += len(data[s.value:]) - len(bytes.TrimLeft(data[s.value:], " \t"))
			s.end = int(e.Raw.Offset) + len(bytes.TrimRight(p.Raw(e.Raw), " \t\r\n"))
		}
		list = append(list, s)
	}
	if err := p.Error(); err != nil {
		return nil, errorf("line %d: %w", parsedLines(data, list), err)
	}
	return list, nil
}

// parsedLines is the line after the last statement that could be read.
func parsedLines(data []byte, list []tomlStatement) int {
	if len(list) == 0 {
		return 1
	}
	return bytes.Count(data[:list[len(list)-1].end], []byte("\n")) + 2
}

// editUserFile sets top-level keys of data to TOML values, or removes those with the
// value "", and leaves all else as it was, comments and order included. A key keeps its
// line, a new one goes below the last. shares given as sections become one line.
func editUserFile(data []byte, edits map[string]string) ([]byte, error) {
	data = trimBOM(data)
	statements, err := tomlStatements(data)
	if err != nil {
		return nil, err
	}
	lineStart := func(at int) int { return bytes.LastIndexByte(data[:at], '\n') + 1 }
	lineEnd := func(at int) int {
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			return at + i + 1
		}
		return len(data)
	}
	type change struct {
		from, to int
		text     string
	}
	var changes []change
	done := map[string]bool{}
	insertAt := -1 // behind the last top-level key, else before the first header, else at the end
	inEdited := false
	for _, s := range statements {
		switch {
		case s.root:
			insertAt = lineEnd(s.end)
		case insertAt < 0:
			insertAt = lineStart(s.start)
		}
		key := s.keys[0]
		text, edit := edits[key]
		if !s.root && !s.table {
			key, edit = "", inEdited // what a section holds goes with its header
		}
		if s.table {
			inEdited = edit
		}
		switch {
		case !edit:
		case s.root && len(s.keys) == 1 && text != "":
			changes = append(changes, change{s.value, s.end, text})
			done[key] = true
		default:
			changes = append(changes, change{lineStart(s.start), lineEnd(s.end), ""})
		}
	}
	if insertAt < 0 {
		insertAt = len(data)
	}
	var added builder
	if insertAt > 0 && data[insertAt-1] != '\n' {
		added.WriteByte('\n')
	}
	for _, key := range userKeys {
		if text := edits[key]; text != "" && !done[key] {
			fmt.Fprintf(&added, "%s = %s\n", key, text)
		}
	}
	if s := added.String(); s != "" && s != "\n" {
		changes = append(changes, change{insertAt, insertAt, s})
	}
	sort.SliceStable(changes, func(i, j int) bool {
		return cmp.Or(cmp.Compare(changes[i].from, changes[j].from), cmp.Compare(changes[i].to, changes[j].to)) < 0
	})
	var out []byte
	at := 0
	for _, ch := range changes {
		out = append(append(out, data[at:ch.from]...), ch.text...)
		at = ch.to
	}
	return append(out, data[at:]...), nil
}
