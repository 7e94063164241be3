// These tests drive the jail, uploads and directory streams on a real disk
// and look at the disk afterwards, outside the home as well as inside. They
// know no protocol. Whatever the kernel may do in two ways (openat2, os.Root)
// is tested in both.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// --- the disk, set up and compared ---

// inBothJails runs fn with openat2(2), where the kernel has it, and with os.Root.
func inBothJails(t *testing.T, fn func(t *testing.T, openat2 bool)) {
	t.Run("openat2", func(t *testing.T) {
		if !haveOpenat2() {
			t.Skip("no openat2(2): Linux before 5.6, or a seccomp filter")
		}
		fn(t, true)
	})
	t.Run("osroot", func(t *testing.T) { fn(t, false) })
}

// enterTestJail opens a jail that the test's end closes.
func enterTestJail(t testing.TB, openat2 bool, home string, shares map[string]shareSpec) *jail {
	t.Helper()
	js := newJailSet(nil)
	js.openat2 = openat2
	j, err := js.enter(jailSpec{user: "ann", home: home, shares: shares})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		js.leave(j)
		if len(js.open) != 0 {
			t.Errorf("%d jails still open after the last leave", len(js.open))
		}
	})
	return j
}

// makeTestFiles makes what list says, in the notation of os/root_test.go, for
// which $BASE is base:
//
//	a/b             a file that holds its own name
//	a/b = text      a file that holds text
//	a/              a directory
//	a => ../b       a symbolic link
//	a | fifo        a FIFO; also socket and device (/dev/zero)
func makeTestFiles(t testing.TB, base string, list []string) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	for _, s := range list {
		name, link, isLink := strings.Cut(s, " => ")
		name, kind, isSpecial := strings.Cut(name, " | ")
		name, text, hasText := strings.Cut(name, " = ")
		full := base + "/" + name
		must(os.MkdirAll(path.Dir(full), 0o755))
		switch {
		case isLink:
			must(os.Symlink(strings.ReplaceAll(link, "$BASE", base), full))
		case isSpecial && kind == "fifo":
			must(unix.Mkfifo(full, 0o644))
		case isSpecial && kind == "socket":
			makeTestSocket(t, full)
		case isSpecial && kind == "device":
			if err := unix.Mknod(full, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
				t.Skipf("mknod: %v; device nodes need root", err)
			}
		case strings.HasSuffix(name, "/"):
			must(os.MkdirAll(full, 0o755))
		default:
			if !hasText {
				text = path.Base(name)
			}
			must(os.WriteFile(full, []byte(text), 0o644))
		}
	}
}

// makeTestSocket binds a socket under a name of any length; bind(2) itself
// takes no more than 107 bytes.
func makeTestSocket(t testing.TB, full string) {
	t.Helper()
	if err := unix.Mknod(full, unix.S_IFSOCK|0o644, 0); err != nil {
		t.Fatal(err)
	}
}

// diskState describes all below dir: name to kind, mode, time and content.
// Times of directories are left out, as every change in them sets those.
func diskState(t testing.TB, dir string) map[string]string {
	t.Helper()
	state := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		info, err := d.Info()
		if err != nil {
			return err
		}
		s := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += info.ModTime().Format(" 2006-01-02T15:04:05.000000000 ") + string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			link, _ := os.Readlink(p)
			s += " => " + link
		}
		state[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// diskChanges tells what became of before: "+name", "-name", "~name", sorted
// by name.
func diskChanges(before, after map[string]string) string {
	var list []string
	for name, s := range before {
		if now, ok := after[name]; !ok {
			list = append(list, "-"+name)
		} else if now != s {
			list = append(list, "~"+name)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			list = append(list, "+"+name)
		}
	}
	slices.SortFunc(list, func(a, b string) int { return strings.Compare(a[1:]+a[:1], b[1:]+b[:1]) })
	return strings.Join(list, " ")
}

// --- the jail ---

// jailOps is every way in which a client can name a path. Each does all that a
// command does and tells what it saw.
var jailOps = map[string]func(j *jail, p string) (string, error){
	"read": func(j *jail, p string) (string, error) {
		f, e, err := j.openFile(p)
		if err != nil {
			return "", err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, 100))
		if err == nil && int64(len(b)) != e.size {
			err = fmt.Errorf("%d bytes, size %d", len(b), e.size)
		}
		return string(b), err
	},
	"list": func(j *jail, p string) (string, error) {
		d, err := j.openDir(p)
		if err != nil {
			return "", err
		}
		defer d.close()
		var names []string
		err = d.each(true, func(e *entry) error { names = append(names, strings.Clone(e.name)); return nil })
		return strings.Join(names, " "), err
	},
	"stat":  func(j *jail, p string) (string, error) { return entryText(j.stat(p)) },
	"lstat": func(j *jail, p string) (string, error) { return entryText(j.lstat(p)) },
	"cwd":   func(j *jail, p string) (string, error) { return "", j.isDir(p) },
	"store": func(j *jail, p string) (string, error) { return "", storeText(j, p, uploadStore, 0, "new") },
	"append": func(j *jail, p string) (string, error) {
		return "", storeText(j, p, uploadAppend, -1, "new")
	},
	"cut": func(j *jail, p string) (string, error) { // an upload that is interrupted
		u, err := j.create(p, uploadStore, 0, true)
		if err != nil {
			return "", err
		}
		writeUpload(u, "new")
		u.interrupt()
		return "", nil
	},
	"mkdir":  func(j *jail, p string) (string, error) { return "", j.mkdir(p) },
	"rmdir":  func(j *jail, p string) (string, error) { return "", j.rmdir(p) },
	"remove": func(j *jail, p string) (string, error) { return "", j.remove(p) },
	"chmod":  func(j *jail, p string) (string, error) { return "", j.chmod(p, 0o7600) },
	"times": func(j *jail, p string) (string, error) {
		return "", j.setTimes(p, time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC))
	},
	"rename-from": func(j *jail, p string) (string, error) { return "", j.rename(p, "/renamed", true) },
	"rename-to":   func(j *jail, p string) (string, error) { return "", j.rename("/mine", p, true) },
	"free": func(j *jail, p string) (string, error) {
		n, err := j.free(p)
		if err == nil && n <= 0 {
			err = fmt.Errorf("%d bytes free", n)
		}
		return "", err
	},
}

// entryText shows an entry as its kind, its name and where it points.
func entryText(e entry, err error) (string, error) {
	if err != nil {
		return "", err
	}
	s := string(appendMode(nil, e.mode)[:1]) + e.name
	if e.link != "" {
		s += " => " + e.link
	}
	return s, nil
}

func writeUpload(u *upload, text string) error {
	_, err := u.Write([]byte(text))
	return err
}

// storeText is an upload of text from beginning to end.
func storeText(j *jail, p string, kind uploadKind, offset int64, text string) error {
	u, err := j.create(p, kind, offset, true)
	if err != nil {
		return err
	}
	defer u.interrupt()
	if err := writeUpload(u, text); err != nil {
		return err
	}
	return u.commit()
}

var longestName = strings.Repeat("n", 255)

// jailTests are single accesses. home is set up below $BASE, beside outside/.
// The path is cleaned from "/" as a client's would be. changed is the change
// of the whole disk, "" for none.
var jailTests = []struct {
	name    string
	fs      []string
	op      string
	path    string
	want    string
	err     error
	changed string
}{
	// Nothing climbs out with "..".
	{name: "dotdot", fs: []string{"home/secret = mine"}, op: "read", path: "../secret", want: "mine"},
	{name: "dotdot slash", op: "read", path: "/../secret", err: fs.ErrNotExist},
	{name: "dotdot many", op: "read", path: "/../../../../../../../../etc/passwd", err: fs.ErrNotExist},
	{name: "dotdot below a file", fs: []string{"home/f"}, op: "read", path: "f/../f", want: "f"},
	{name: "dot slash dotdot", op: "read", path: "./../secret", err: fs.ErrNotExist},
	{name: "backslashes are letters", fs: []string{`home/..\secret = odd`}, op: "read", path: `..\secret`, want: "odd"},
	{name: "percent is a letter", op: "read", path: "%2e%2e/secret", err: fs.ErrNotExist},
	{name: "tilde is a letter", fs: []string{"home/~root/x"}, op: "read", path: "~root/x", want: "x"},
	{name: "dotdot store", op: "store", path: "../secret", changed: "+home/secret"},
	{name: "dotdot mkdir", op: "mkdir", path: "../../d", changed: "+home/d"},
	{name: "dotdot is the top", op: "cwd", path: "../.."},

	// Links that stay inside are followed for reading and entering.
	{name: "link to file", fs: []string{"home/f = x", "home/l => f"}, op: "read", path: "l", want: "x"},
	{name: "link to file in dir", fs: []string{"home/d/f = x", "home/l => d/f"}, op: "read", path: "l", want: "x"},
	{name: "link as middle", fs: []string{"home/d/e/f = x", "home/l => d"}, op: "read", path: "l/e/f", want: "x"},
	{name: "link with dotdot inside", fs: []string{"home/a/l => ../d/f", "home/d/f = x"}, op: "read", path: "a/l", want: "x"},
	{name: "link to dir is entered", fs: []string{"home/d/", "home/l => d"}, op: "cwd", path: "l"},
	{name: "link to dir is listed", fs: []string{"home/d/f", "home/l => d"}, op: "list", path: "l", want: "f"},
	{name: "link stat", fs: []string{"home/d/", "home/l => d"}, op: "stat", path: "l", want: "dl"},
	{name: "link lstat", fs: []string{"home/d/", "home/l => d"}, op: "lstat", path: "l", want: "ll => d"},
	{name: "link as parent, store", fs: []string{"home/d/", "home/l => d"}, op: "store", path: "l/n", changed: "+home/d/n"},
	{name: "link as parent, mkdir", fs: []string{"home/d/", "home/l => d"}, op: "mkdir", path: "l/n", changed: "+home/d/n"},
	{name: "link as parent, remove", fs: []string{"home/d/n", "home/l => d"}, op: "remove", path: "l/n", changed: "-home/d/n"},
	{name: "link is removed, not its target", fs: []string{"home/f", "home/l => f"}, op: "remove", path: "l", changed: "-home/l"},
	{name: "link is replaced, not its target", fs: []string{"home/f", "home/l => f"}, op: "store", path: "l", changed: "~home/l"},
	{name: "link to dir is not replaced", fs: []string{"home/d/", "home/l => d"}, op: "store", path: "l", err: errIsDir},
	{name: "link is renamed, not its target", fs: []string{"home/f", "home/l => f"}, op: "rename-from", path: "l", changed: "-home/l +home/renamed"},
	{name: "link is not a dir to rmdir", fs: []string{"home/d/", "home/l => d"}, op: "rmdir", path: "l", err: syscall.ENOTDIR},
	{name: "dangling link, read", fs: []string{"home/l => gone"}, op: "read", path: "l", err: fs.ErrNotExist},
	{name: "dangling link, lstat", fs: []string{"home/l => gone"}, op: "lstat", path: "l", want: "ll => gone"},
	{name: "dangling link, store", fs: []string{"home/l => gone"}, op: "store", path: "l", changed: "~home/l"},
	{name: "dangling link, mkdir", fs: []string{"home/l => gone"}, op: "mkdir", path: "l", err: errExists},

	// Links that lead out are seen and not followed, as file, directory,
	// parent and middle, relative and absolute.
	{name: "out, file", fs: []string{"home/l => ../secret"}, op: "read", path: "l", err: syscall.EXDEV},
	{name: "out, file deep", fs: []string{"home/a/b/l => ../../../secret"}, op: "read", path: "a/b/l", err: syscall.EXDEV},
	{name: "out, in and out and in", fs: []string{"home/f", "home/l => ../home/f"}, op: "read", path: "l", err: syscall.EXDEV},
	{name: "out, dir", fs: []string{"home/l => ../outside"}, op: "list", path: "l", err: syscall.EXDEV},
	{name: "out, home's parent", fs: []string{"home/l => ../"}, op: "list", path: "l", err: syscall.EXDEV},
	{name: "out, middle", fs: []string{"home/l => ../"}, op: "read", path: "l/secret", err: syscall.EXDEV},
	{name: "out, chain", fs: []string{"home/l => m", "home/m => ../secret"}, op: "read", path: "l", err: syscall.EXDEV},
	{name: "out, enter", fs: []string{"home/l => ../outside"}, op: "cwd", path: "l", err: syscall.EXDEV},
	{name: "out, stat", fs: []string{"home/l => ../secret"}, op: "stat", path: "l", err: syscall.EXDEV},
	{name: "out, lstat", fs: []string{"home/l => ../secret"}, op: "lstat", path: "l", want: "ll => ../secret"},
	{name: "out, parent, store", fs: []string{"home/l => ../outside"}, op: "store", path: "l/n", err: syscall.EXDEV},
	{name: "out, parent, store over", fs: []string{"home/l => ../outside"}, op: "store", path: "l/kept", err: syscall.EXDEV},
	{name: "out, parent, append", fs: []string{"home/l => ../outside"}, op: "append", path: "l/kept", err: syscall.EXDEV},
	{name: "out, parent, mkdir", fs: []string{"home/l => ../outside"}, op: "mkdir", path: "l/n", err: syscall.EXDEV},
	{name: "out, parent, rmdir", fs: []string{"outside/e/", "home/l => ../outside"}, op: "rmdir", path: "l/e", err: syscall.EXDEV},
	{name: "out, parent, remove", fs: []string{"home/l => ../outside"}, op: "remove", path: "l/kept", err: syscall.EXDEV},
	{name: "out, parent, rename from", fs: []string{"home/l => ../outside"}, op: "rename-from", path: "l/kept", err: syscall.EXDEV},
	{name: "out, parent, rename to", fs: []string{"home/mine", "home/l => ../outside"}, op: "rename-to", path: "l/kept", err: syscall.EXDEV},
	{name: "out, chmod", fs: []string{"home/l => ../secret"}, op: "chmod", path: "l", err: syscall.EXDEV},
	{name: "out, chmod dir", fs: []string{"home/l => ../outside"}, op: "chmod", path: "l", err: syscall.EXDEV},
	{name: "out, times", fs: []string{"home/l => ../secret"}, op: "times", path: "l", err: syscall.EXDEV},
	{name: "out, free", fs: []string{"home/l => ../outside"}, op: "free", path: "l", err: syscall.EXDEV},
	{name: "out, store replaces the link", fs: []string{"home/l => ../secret"}, op: "store", path: "l", changed: "~home/l"},
	{name: "out, append replaces the link", fs: []string{"home/l => ../secret"}, op: "append", path: "l", changed: "~home/l"},
	{name: "out, cut keeps the link", fs: []string{"home/l => ../secret"}, op: "cut", path: "l", changed: "+home/" + partialName("l")},
	{name: "out, remove the link", fs: []string{"home/l => ../secret"}, op: "remove", path: "l", changed: "-home/l"},
	{name: "out, rename onto the link", fs: []string{"home/mine", "home/l => ../secret"}, op: "rename-to", path: "l", changed: "~home/l -home/mine"},
	{name: "absolute, file", fs: []string{"home/l => $BASE/secret"}, op: "read", path: "l", err: syscall.EXDEV},
	{name: "absolute, dir", fs: []string{"home/l => $BASE/outside"}, op: "list", path: "l", err: syscall.EXDEV},
	{name: "absolute, into the home", fs: []string{"home/f", "home/l => $BASE/home/f"}, op: "read", path: "l", err: syscall.EXDEV},
	{name: "absolute, parent, store", fs: []string{"home/l => $BASE/outside"}, op: "store", path: "l/n", err: syscall.EXDEV},
	{name: "absolute, root", fs: []string{"home/l => /"}, op: "cwd", path: "l", err: syscall.EXDEV},
	{name: "magic link, root", fs: []string{"home/l => /proc/self/root"}, op: "list", path: "l", err: syscall.EXDEV},

	// Loops end.
	{name: "loop, read", fs: []string{"home/l => l"}, op: "read", path: "l", err: syscall.ELOOP},
	{name: "loop of two, middle", fs: []string{"home/l => m", "home/m => l"}, op: "read", path: "l/x", err: syscall.ELOOP},
	{name: "loop, lstat", fs: []string{"home/l => l"}, op: "lstat", path: "l", want: "ll => l"},
	{name: "loop, store", fs: []string{"home/l => l"}, op: "store", path: "l", changed: "~home/l"},
	{name: "loop, remove", fs: []string{"home/l => l"}, op: "remove", path: "l", changed: "-home/l"},

	// Special files are seen, and can be renamed and removed, but never opened.
	{name: "fifo, read", fs: []string{"home/s | fifo"}, op: "read", path: "s", err: errNotRegular},
	{name: "fifo, through link", fs: []string{"home/s | fifo", "home/l => s"}, op: "read", path: "l", err: errNotRegular},
	{name: "fifo, store", fs: []string{"home/s | fifo"}, op: "store", path: "s", err: errNotRegular},
	{name: "fifo, append", fs: []string{"home/s | fifo"}, op: "append", path: "s", err: errNotRegular},
	{name: "fifo, list", fs: []string{"home/s | fifo"}, op: "list", path: "s", err: syscall.ENOTDIR},
	{name: "fifo, chmod", fs: []string{"home/s | fifo"}, op: "chmod", path: "s", err: errNotRegular},
	{name: "fifo, times", fs: []string{"home/s | fifo"}, op: "times", path: "s", err: errNotRegular},
	{name: "fifo, stat", fs: []string{"home/s | fifo"}, op: "stat", path: "s", want: "ps"},
	{name: "fifo, remove", fs: []string{"home/s | fifo"}, op: "remove", path: "s", changed: "-home/s"},
	{name: "socket, read", fs: []string{"home/s | socket"}, op: "read", path: "s", err: errNotRegular},
	{name: "socket, store", fs: []string{"home/s | socket"}, op: "store", path: "s", err: errNotRegular},
	{name: "socket, chmod", fs: []string{"home/s | socket"}, op: "chmod", path: "s", err: errNotRegular},
	{name: "socket, stat", fs: []string{"home/s | socket"}, op: "stat", path: "s", want: "ss"},
	{name: "device, read", fs: []string{"home/s | device"}, op: "read", path: "s", err: errNotRegular},
	{name: "device, store", fs: []string{"home/s | device"}, op: "store", path: "s", err: errNotRegular},
	{name: "device, chmod", fs: []string{"home/s | device"}, op: "chmod", path: "s", err: errNotRegular},
	{name: "device, lstat", fs: []string{"home/s | device"}, op: "lstat", path: "s", want: "cs"},
	{name: "device, remove", fs: []string{"home/s | device"}, op: "remove", path: "s", changed: "-home/s"},

	// Names are bytes.
	{name: "space in front", op: "store", path: " a", changed: "+home/ a"},
	{name: "space behind", op: "store", path: "a ", changed: "+home/a "},
	{name: "one space", op: "store", path: " ", changed: "+home/ "},
	{name: "star", fs: []string{"home/*", "home/a"}, op: "remove", path: "*", changed: "-home/*"},
	{name: "bracket", fs: []string{"home/[a]", "home/a"}, op: "remove", path: "[a]", changed: "-home/[a]"},
	{name: "minus", op: "store", path: "-rf", changed: "+home/-rf"},
	{name: "dot", op: "store", path: ".hidden", changed: "+home/.hidden"},
	{name: "three dots", op: "mkdir", path: "...", changed: "+home/..."},
	{name: "quotes", op: "mkdir", path: `say "hi" 'x'`, changed: `+home/say "hi" 'x'`},
	{name: "not UTF-8", op: "store", path: "\xff\xfe\x80", changed: "+home/\xff\xfe\x80"},
	{name: "decomposed is another name", fs: []string{"home/\u00e9"}, op: "store", path: "e\u0301", changed: "+home/e\u0301"},
	{name: "escape sequence", op: "store", path: "\x1b[2J", changed: "+home/\x1b[2J"},
	{name: "255 bytes", op: "store", path: longestName, changed: "+home/" + longestName},
	{name: "255 bytes, cut over a file", fs: []string{"home/" + longestName}, op: "cut", path: longestName, changed: "+home/" + partialName(longestName)},
	{name: "256 bytes, store", op: "store", path: longestName + "n", err: syscall.ENAMETOOLONG},
	{name: "256 bytes, read", op: "read", path: longestName + "n", err: syscall.ENAMETOOLONG},
	{name: "256 bytes, mkdir", op: "mkdir", path: longestName + "n", err: syscall.ENAMETOOLONG},
	{name: "path too long", op: "read", path: strings.Repeat("/n", 2100), err: syscall.ENAMETOOLONG},
	{name: "NUL", fs: []string{"home/a.txt"}, op: "read", path: "a.txt\x00.png", err: errBadName},
	{name: "CR", op: "store", path: "a\rb", err: errBadName},
	{name: "LF", op: "mkdir", path: "a\nb", err: errBadName},
	{name: "slash behind a file", fs: []string{"home/f"}, op: "read", path: "f/", want: "f"},
	{name: "below a file", fs: []string{"home/f"}, op: "read", path: "f/x", err: syscall.ENOTDIR},
	{name: "below a file, store", fs: []string{"home/f"}, op: "store", path: "f/x", err: syscall.ENOTDIR},
	{name: "double slashes", fs: []string{"home/d/f = x"}, op: "read", path: "//d///f", want: "x"},

	// Reserved names are neither named nor seen.
	{name: "reserved, read", fs: []string{"home/.berth-up-1"}, op: "read", path: ".berth-up-1", err: errReserved},
	{name: "reserved, store", op: "store", path: ".berth-x", err: errReserved},
	{name: "reserved, prefix alone", op: "mkdir", path: ".berth-", err: errReserved},
	{name: "reserved, as directory", fs: []string{"home/.berth-d/f"}, op: "read", path: ".berth-d/f", err: errReserved},
	{name: "reserved, deep", fs: []string{"home/d/"}, op: "store", path: "d/.berth-up-1", err: errReserved},
	{name: "reserved, cleaned away", fs: []string{"home/f"}, op: "read", path: ".berth-x/../f", want: "f"},
	{name: "reserved, not quite", op: "store", path: ".berth", changed: "+home/.berth"},
	{name: "reserved, inside a name", op: "store", path: "x.berth-up-1", changed: "+home/x.berth-up-1"},
	{name: "reserved, list", fs: []string{"home/.berth-up-1", "home/.berth-part-1", "home/.berth-d/", "home/.bertha", "home/a"}, op: "list", path: "/", want: ".bertha a"},

	// The top directory.
	{name: "top, list", fs: []string{"home/b", "home/a"}, op: "list", path: "/", want: "a b"},
	{name: "top, stat", op: "stat", path: "/", want: "d/"},
	{name: "top, read", op: "read", path: "/", err: errIsDir},
	{name: "top, store", op: "store", path: "/", err: errIsDir},
	{name: "top, mkdir", op: "mkdir", path: "/", err: errExists},
	{name: "top, rmdir", op: "rmdir", path: "/", err: errShareRoot},
	{name: "top, remove", op: "remove", path: "/", err: errShareRoot},
	{name: "top, rename from", op: "rename-from", path: "/", err: errShareRoot},
	{name: "top, rename to", fs: []string{"home/mine"}, op: "rename-to", path: "/", err: errShareRoot},
	{name: "top, free", op: "free", path: "/"},

	// Plain accesses change what they say and nothing else.
	{name: "chmod gives no set-id", fs: []string{"home/f"}, op: "chmod", path: "f", changed: "~home/f"},
	{name: "chmod dir", fs: []string{"home/d/"}, op: "chmod", path: "d", changed: "~home/d"},
	{name: "chmod through a link inside", fs: []string{"home/f", "home/l => f"}, op: "chmod", path: "l", changed: "~home/f"},
	{name: "times", fs: []string{"home/f"}, op: "times", path: "f", changed: "~home/f"},
	{name: "remove a dir", fs: []string{"home/d/"}, op: "remove", path: "d", err: syscall.EISDIR},
	{name: "rmdir a file", fs: []string{"home/f"}, op: "rmdir", path: "f", err: syscall.ENOTDIR},
	{name: "rmdir", fs: []string{"home/d/"}, op: "rmdir", path: "d", changed: "-home/d"},
	{name: "rmdir of a full one", fs: []string{"home/d/f"}, op: "rmdir", path: "d", err: syscall.ENOTEMPTY},
	{name: "rmdir of nothing", op: "rmdir", path: "d", err: fs.ErrNotExist},
	{name: "rmdir with partials", fs: []string{"home/d/.berth-part-1", "home/d/.berth-part-2"}, op: "rmdir", path: "d", changed: "-home/d -home/d/.berth-part-1 -home/d/.berth-part-2"},
	{name: "rmdir with partials and a file", fs: []string{"home/d/.berth-part-1", "home/d/f"}, op: "rmdir", path: "d", err: syscall.ENOTEMPTY},
	{name: "rmdir with an upload", fs: []string{"home/d/.berth-up-1", "home/d/.berth-part-2"}, op: "rmdir", path: "d", err: errBusy},
	{name: "mkdir of a dir", fs: []string{"home/d/"}, op: "mkdir", path: "d", err: errExists},
	{name: "mkdir without parent", op: "mkdir", path: "d/e", err: fs.ErrNotExist},
	{name: "remove takes the partial along", fs: []string{"home/f", "home/" + partialName("f"), "home/" + partialName("g")}, op: "remove", path: "f", changed: "-home/" + partialName("f") + " -home/f"},
	{name: "rename takes the target's partial along", fs: []string{"home/mine", "home/f", "home/" + partialName("f")}, op: "rename-to", path: "f", changed: "-home/" + partialName("f") + " ~home/f -home/mine"},
	{name: "store over a dir", fs: []string{"home/d/"}, op: "store", path: "d", err: errIsDir},
	{name: "store without parent", op: "store", path: "d/f", err: fs.ErrNotExist},
	{name: "cut of a new name", op: "cut", path: "f", changed: "+home/f"},
	{name: "cut over a file", fs: []string{"home/f"}, op: "cut", path: "f", changed: "+home/" + partialName("f")},
}

func TestJail(t *testing.T) {
	inBothJails(t, func(t *testing.T, openat2 bool) {
		for _, tt := range jailTests {
			t.Run(tt.name, func(t *testing.T) {
				base := t.TempDir()
				makeTestFiles(t, base, append([]string{"secret = not yours", "outside/kept = kept", "home/"}, tt.fs...))
				j := enterTestJail(t, openat2, base+"/home", nil)
				before := diskState(t, base)
				var got string
				p, err := cleanPath("/", tt.path)
				if err == nil {
					got, err = jailOps[tt.op](j, p)
				}
				if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
					t.Errorf("%s %q: error %v; want %v", tt.op, tt.path, err, tt.err)
				}
				if got != tt.want {
					t.Errorf("%s %q = %q; want %q", tt.op, tt.path, got, tt.want)
				}
				if changed := diskChanges(before, diskState(t, base)); changed != tt.changed {
					t.Errorf("%s %q changed the disk: %q; want %q", tt.op, tt.path, changed, tt.changed)
				}
			})
		}
	})
}

// TestJailReservedEverywhere has every operation refuse a reserved name, also
// for a kind of access that a later change adds to jailOps.
func TestJailReservedEverywhere(t *testing.T) {
	for _, p := range []string{".berth-up-1", "/.berth-part-0", "d/.berth-x", ".berth-d/f", "d/../.berth-x", "/d//.berth-x/"} {
		if got, err := cleanPath("/d", p); !errors.Is(err, errReserved) {
			t.Errorf("cleanPath(%q) = %q, %v; want errReserved", p, got, err)
		}
	}
}

// TestJailChmodMode: set-id and sticky bits are not a client's to give.
func TestJailChmodMode(t *testing.T) {
	base := t.TempDir()
	makeTestFiles(t, base, []string{"f"})
	j := enterTestJail(t, haveOpenat2(), base, nil)
	if err := j.chmod("/f", 0o7751); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(base + "/f"); info.Mode() != 0o751 {
		t.Errorf("mode %v; want 0751", info.Mode())
	}
	want := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
	if err := j.setTimes("/f", want); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(base + "/f"); !info.ModTime().Equal(want) {
		t.Errorf("time %v; want %v", info.ModTime(), want)
	}
}

// TestJailMagicLinks has a home in /proc, where links lead to places that
// their text does not name.
func TestJailMagicLinks(t *testing.T) {
	inBothJails(t, func(t *testing.T, openat2 bool) {
		j := enterTestJail(t, openat2, "/proc/self", nil)
		for _, p := range []string{"/root", "/cwd", "/root/etc/passwd", "/exe", "/fd/0", "/task/self/root"} {
			if f, _, err := j.openFile(p); err == nil {
				f.Close()
				t.Errorf("openFile(%q) went through a magic link", p)
			}
			if err := j.isDir(p); err == nil {
				t.Errorf("isDir(%q) went through a magic link", p)
			}
		}
	})
}

// TestJailShares: a share shows as a directory of the home, is ruled by its
// own write flag, and is a jail of its own.
func TestJailShares(t *testing.T) {
	tests := []struct {
		name    string
		op      string
		path    string
		want    string
		err     error
		changed string
	}{
		{name: "listed, and hides the home's own", op: "list", path: "/", want: "in out escape mine public"},
		{name: "list", op: "list", path: "/in", want: "f link"},
		{name: "read", op: "read", path: "/in/f", want: "in"},
		{name: "hidden entry is unreachable", op: "read", path: "/in/hidden", err: fs.ErrNotExist},
		{name: "root stat", op: "stat", path: "/in", want: "din"},
		{name: "root enter", op: "cwd", path: "/out"},
		{name: "root store", op: "store", path: "/in", err: errIsDir},
		{name: "root remove", op: "remove", path: "/in", err: errShareRoot},
		{name: "root rmdir", op: "rmdir", path: "/in", err: errShareRoot},
		{name: "root rename from", op: "rename-from", path: "/in", err: errShareRoot},
		{name: "root rename to", op: "rename-to", path: "/in", err: errShareRoot},
		{name: "root mkdir", op: "mkdir", path: "/in", err: errExists},
		{name: "writable, store", op: "store", path: "/in/n", changed: "+shared/in/n"},
		{name: "writable, store over", op: "store", path: "/in/f", changed: "~shared/in/f"},
		{name: "writable, remove", op: "remove", path: "/in/f", changed: "-shared/in/f"},
		{name: "writable, chmod", op: "chmod", path: "/in/f", changed: "~shared/in/f"},
		{name: "read-only, read", op: "read", path: "/out/f", want: "out"},
		{name: "read-only, store", op: "store", path: "/out/n", err: errReadOnly},
		{name: "read-only, store over", op: "store", path: "/out/f", err: errReadOnly},
		{name: "read-only, append", op: "append", path: "/out/f", err: errReadOnly},
		{name: "read-only, remove", op: "remove", path: "/out/f", err: errReadOnly},
		{name: "read-only, mkdir", op: "mkdir", path: "/out/n", err: errReadOnly},
		{name: "read-only, rmdir", op: "rmdir", path: "/out/d", err: errReadOnly},
		{name: "read-only, chmod", op: "chmod", path: "/out/f", err: errReadOnly},
		{name: "read-only, chmod root", op: "chmod", path: "/out", err: errReadOnly},
		{name: "read-only, times", op: "times", path: "/out/f", err: errReadOnly},
		{name: "read-only, rename from", op: "rename-from", path: "/out/f", err: errReadOnly},
		{name: "read-only, rename to", op: "rename-to", path: "/out/n", err: errReadOnly},
		{name: "link out of a share", op: "read", path: "/in/link", err: syscall.EXDEV},
		{name: "dotdot of a share is the home", op: "read", path: "/in/../mine", want: "mine"},
		{name: "link of the home to a share's place", op: "read", path: "/escape/f", err: syscall.EXDEV},
		{name: "link of the home to a share's name is the home's own", op: "list", path: "/public", want: "hidden"},
		{name: "moved across on one disk", op: "rename-to", path: "/in/n", changed: "-home/mine +shared/in/n"},
	}
	inBothJails(t, func(t *testing.T, openat2 bool) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				base := t.TempDir()
				makeTestFiles(t, base, []string{"shared/in/f = in", "shared/in/link => ../out/f", "shared/out/f = out", "shared/out/d/",
					"home/in/hidden", "home/mine", "home/escape => ../shared/in", "home/public => in"})
				j := enterTestJail(t, openat2, base+"/home", map[string]shareSpec{
					"in": {path: base + "/shared/in", write: true}, "out": {path: base + "/shared/out"}})
				before := diskState(t, base)
				p, err := cleanPath("/", tt.path)
				if err != nil {
					t.Fatal(err)
				}
				got, err := jailOps[tt.op](j, p)
				if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
					t.Errorf("error %v; want %v", err, tt.err)
				}
				if got != tt.want {
					t.Errorf("got %q; want %q", got, tt.want)
				}
				if changed := diskChanges(before, diskState(t, base)); changed != tt.changed {
					t.Errorf("changed the disk: %q; want %q", changed, tt.changed)
				}
			})
		}
	})
}

// TestJailShareModes: listings show a read-only share without its write bits.
func TestJailShareModes(t *testing.T) {
	base := t.TempDir()
	makeTestFiles(t, base, []string{"home/", "in/", "out/"})
	j := enterTestJail(t, haveOpenat2(), base+"/home", map[string]shareSpec{
		"out": {path: base + "/out"}, "in": {path: base + "/in", write: true}})
	d, err := j.openDir("/")
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	var got []string
	d.each(true, func(e *entry) error {
		got = append(got, string(appendMode(nil, e.mode))+" "+e.name)
		return nil
	})
	if want := []string{"drwxr-xr-x in", "dr-xr-xr-x out"}; !slices.Equal(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
}

// TestJailRenameAcrossDisks: a rename is one step or none; nothing is copied
// behind its back.
func TestJailRenameAcrossDisks(t *testing.T) {
	far := otherDisk(t)
	base := t.TempDir()
	makeTestFiles(t, base, []string{"mine", "d/f"})
	makeTestFiles(t, far, []string{"f"})
	inBothJails(t, func(t *testing.T, openat2 bool) {
		j := enterTestJail(t, openat2, base, map[string]shareSpec{"far": {path: far, write: true}})
		before, farBefore := diskState(t, base), diskState(t, far)
		for _, r := range [][2]string{{"/mine", "/far/n"}, {"/mine", "/far/f"}, {"/far/f", "/n"}, {"/d", "/far/d"}} {
			for _, replace := range []bool{true, false} {
				if err := j.rename(r[0], r[1], replace); !errors.Is(err, syscall.EXDEV) && (replace || err != errExists) {
					t.Errorf("rename(%q, %q, %t) = %v; want EXDEV", r[0], r[1], replace, err)
				}
			}
		}
		if c := diskChanges(before, diskState(t, base)) + diskChanges(farBefore, diskState(t, far)); c != "" {
			t.Errorf("the disks changed: %s", c)
		}
	})
}

// otherDisk is a directory on another file system than t.TempDir's.
func otherDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-test-")
	if err != nil {
		t.Skipf("no second file system: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var a, b unix.Stat_t
	if unix.Stat(dir, &a) != nil || unix.Stat(t.TempDir(), &b) != nil || a.Dev == b.Dev {
		t.Skip("no second file system: /dev/shm is on the same one")
	}
	return dir
}

// TestJailSet: sessions of a user share one jail; a home made anew is seen.
func TestJailSet(t *testing.T) {
	base := t.TempDir()
	home := base + "/homes/ann"
	js := newJailSet(nil)
	a, err := js.enter(jailSpec{user: "ann", home: home})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(home); err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("the home was made %v, %v; want mode 0700", info, err)
	}
	b, err := js.enter(jailSpec{user: "ann", home: home})
	if err != nil || a != b {
		t.Fatalf("a second session got its own jail (%v)", err)
	}
	bob, err := js.enter(jailSpec{user: "bob", home: home})
	if err != nil || bob == a {
		t.Fatalf("another user got the same jail (%v)", err)
	}
	if err := os.Rename(home, home+".old"); err != nil {
		t.Fatal(err)
	}
	c, err := js.enter(jailSpec{user: "ann", home: home})
	if err != nil || c == a {
		t.Fatalf("a home that was replaced is still the old one (%v)", err)
	}
	shares := map[string]shareSpec{"s": {path: base, write: false}}
	d, err := js.enter(jailSpec{user: "ann", home: home, shares: shares})
	if err != nil || d == c {
		t.Fatalf("a share that was added is not there (%v)", err)
	}
	// A share that is not there keeps nobody out, and does not show.
	e, err := js.enter(jailSpec{user: "ann", home: home, shares: map[string]shareSpec{"s": {path: base + "/missing"}, "t": {path: base}}})
	if err != nil || len(e.missing) != 1 || !errors.Is(e.missing[0], fs.ErrNotExist) {
		t.Fatalf("a missing share: %v, missing %v; want it noted as not existing", err, e.missing)
	}
	if got := eachName(t, e, "/", true); !slices.Equal(got, []string{"t"}) {
		t.Errorf("beside a missing share %q shows; want t alone", got)
	}
	for _, j := range []*jail{a, b, bob, c, d, e} {
		js.leave(j)
	}
	if len(js.open) != 0 {
		t.Errorf("%d jails are open after the last leave", len(js.open))
	}
	if _, err := a.stat("/"); err == nil {
		t.Error("a jail that everybody left is still open")
	}
}

// TestJailRace has another user of the machine swap a directory of the home
// for a link out of it, 20,000 times, while a client works in it. What is
// outside must stay as it was, whatever the client is told.
func TestJailRace(t *testing.T) {
	swaps := 20_000
	if testing.Short() {
		swaps = 1000
	}
	inBothJails(t, func(t *testing.T, openat2 bool) {
		base := t.TempDir()
		makeTestFiles(t, base, []string{"outside/f = outside", "outside/old = outside", "outside/e/", "outside/sub/f",
			"home/d/f = home", "home/d/old = home", "home/d/e/", "home/d/sub/f", "home/mine"})
		if err := os.Symlink("../outside", base+"/home/link"); err != nil {
			t.Fatal(err)
		}
		before := diskState(t, base+"/outside")
		outsideTime := mtimeOf(t, base+"/outside")
		j := enterTestJail(t, openat2, base+"/home", nil)

		var stop atomic.Bool
		var wg sync.WaitGroup
		work := func(fn func(i int)) {
			wg.Go(func() {
				for i := 0; !stop.Load(); i++ {
					fn(i)
				}
			})
		}
		var wrong atomic.Pointer[string]
		work(func(i int) {
			storeText(j, "/d/f", uploadStore, 0, "new")
			if u, err := j.create("/d/new", uploadStore, 0, true); err == nil {
				writeUpload(u, "part")
				u.interrupt()
			}
			storeText(j, "/d/f", uploadAppend, -1, "more")
			j.remove("/d/new")
			j.mkdir("/d/made")
			j.rmdir("/d/made")
		})
		work(func(i int) {
			j.rename("/mine", "/d/mine", true)
			j.rename("/d/mine", "/mine", true)
			j.rename("/d/old", "/d/older", true)
			j.rename("/d/older", "/d/old", true)
			j.chmod("/d/f", 0o600)
			j.chmod("/d", 0o700)
			j.chmod("/link", 0o777)
			j.setTimes("/d/sub/f", time.Unix(1, 0))
			j.rmdir("/d/e")
			j.mkdir("/d/e")
			if f, e, err := j.openFile("/d/old"); err == nil {
				b := make([]byte, e.size)
				f.Read(b)
				f.Close()
				if s := string(b); s == "outside" {
					wrong.Store(&s)
				}
			}
			j.glob("/", "*/*")
		})
		for range swaps / 2 {
			// One call swaps both, so that the client always finds one of them.
			if err := unix.Renameat2(unix.AT_FDCWD, base+"/home/d", unix.AT_FDCWD, base+"/home/link", unix.RENAME_EXCHANGE); err != nil {
				stop.Store(true)
				wg.Wait()
				t.Skipf("RENAME_EXCHANGE: %v", err)
			}
			if err := unix.Renameat2(unix.AT_FDCWD, base+"/home/d", unix.AT_FDCWD, base+"/home/link", unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
			}
			runtime.Gosched()
		}
		stop.Store(true)
		wg.Wait()
		if changed := diskChanges(before, diskState(t, base+"/outside")); changed != "" {
			t.Errorf("outside changed: %s", changed)
		}
		if now := mtimeOf(t, base+"/outside"); !now.Equal(outsideTime) {
			t.Errorf("something was made outside and removed again: its time went from %v to %v", outsideTime, now)
		}
		if p := wrong.Load(); p != nil {
			t.Errorf("a file outside was read: %q", *p)
		}
	})
}

func mtimeOf(t testing.TB, p string) time.Time {
	t.Helper()
	info, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

// TestJailConcurrent: one jail serves all sessions of its user.
func TestJailConcurrent(t *testing.T) {
	inBothJails(t, func(t *testing.T, openat2 bool) {
		j := enterTestJail(t, openat2, t.TempDir(), nil)
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				dir := fmt.Sprintf("/d%d", g)
				if err := j.mkdir(dir); err != nil {
					t.Error(err)
				}
				for i := range 20 {
					p := fmt.Sprintf("%s/f%d", dir, i)
					if err := storeText(j, p, uploadStore, 0, p); err != nil {
						t.Error(err)
					}
					if got, err := jailOps["read"](j, p); got != p || err != nil {
						t.Errorf("read %s = %q, %v", p, got, err)
					}
				}
				if err := j.rename(dir, dir+"x", false); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// --- cleanPath ---

func TestCleanPath(t *testing.T) {
	tests := []struct {
		cwd, name, want string
		err             error
	}{
		{"/", "", "/", nil},
		{"/", "/", "/", nil},
		{"/", ".", "/", nil},
		{"/", "..", "/", nil},
		{"/", "a", "/a", nil},
		{"/", "/a", "/a", nil},
		{"/", "a/", "/a", nil},
		{"/a", "b", "/a/b", nil},
		{"/a", "/b", "/b", nil},
		{"/a", "", "/a", nil},
		{"/a", "..", "/", nil},
		{"/a", "../..", "/", nil},
		{"/a", "../../b", "/b", nil},
		{"/a/b", "../c", "/a/c", nil},
		{"/a/b", "./c/./d/..", "/a/b/c", nil},
		{"/a", "//b//c", "/b/c", nil},
		{"/", "...", "/...", nil},
		{"/", "..a", "/..a", nil},
		{"/", "a..", "/a..", nil},
		{"/", " ", "/ ", nil},
		{"/", " .. ", "/ .. ", nil},
		{"/", "a\\..\\b", "/a\\..\\b", nil},
		{"/", "\xff\xfe", "/\xff\xfe", nil},
		{"/", "a\tb\x1b", "/a\tb\x1b", nil},
		{"/", "\x00", "", errBadName},
		{"/", "a\rb", "", errBadName},
		{"/", "a\n", "", errBadName},
		{"/a", "../\x00/..", "", errBadName},
		{"/", ".berth-", "", errReserved},
		{"/", "a/.berth-up-x/b", "", errReserved},
		{"/", ".berth", "/.berth", nil},
		{"/", ".Berth-up", "", errReserved}, // disks that fold case
		{"/", "a/.BERTH-state/users.d", "", errReserved},
		{"/", ".berth-x/..", "/", nil},
		{"/", strings.Repeat("/a", 2048), strings.Repeat("/a", 2048), nil},
		{"/", strings.Repeat("a", maxPath), "", syscall.ENAMETOOLONG},
		{"/" + strings.Repeat("a", 2000), strings.Repeat("b", 2096), "", syscall.ENAMETOOLONG},
		{"/" + strings.Repeat("a", 2000), strings.Repeat("../", 2000), "", syscall.ENAMETOOLONG},
	}
	for _, tt := range tests {
		got, err := cleanPath(tt.cwd, tt.name)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("cleanPath(%.40q, %.40q) = %.40q, %v; want %.40q, %v", tt.cwd, tt.name, got, err, tt.want, tt.err)
		}
	}
}

// FuzzCleanPath: what was checked is what is opened. A clean path is a fixed
// point, absolute, without anything that moves, and every tree and parent that
// is taken from it spells it again.
func FuzzCleanPath(f *testing.F) {
	for _, tt := range jailTests {
		f.Add("/", tt.path)
		f.Add("/d/e", tt.path)
	}
	f.Add("/a", "../../../../b/./c//")
	f.Fuzz(func(t *testing.T, cwd, name string) {
		cwd, err := cleanPath("/", cwd)
		if err != nil {
			return
		}
		p, err := cleanPath(cwd, name)
		if err != nil {
			if p != "" {
				t.Fatalf("path %q beside the error %v", p, err)
			}
			return
		}
		if again, err := cleanPath(cwd, p); again != p || err != nil {
			t.Fatalf("cleanPath(%q) = %q, %v: not idempotent", p, again, err)
		}
		if p[0] != '/' || len(p) > maxPath || strings.ContainsAny(p, "\x00\r\n") {
			t.Fatalf("unclean %q", p)
		}
		parts := strings.Split(p, "/")[1:]
		for _, part := range parts {
			if part == "." || part == ".." || part == "" && p != "/" || strings.HasPrefix(part, reservedPrefix) {
				t.Fatalf("component %q in %q", part, p)
			}
		}
		home, share := &tree{}, &tree{}
		j := &jail{home: home, shares: map[string]*tree{"share": share}}
		in, rel := j.locate(p)
		whole := "/" + rel
		if in == share {
			whole = "/share/" + rel
		}
		if path.Clean(whole) != p || (in == share) != (parts[0] == "share") || !filepath.IsLocal(rel) {
			t.Fatalf("%q is opened as %q (share: %t)", p, rel, in == share)
		}
	})
}

// --- uploads ---

// An uploadBox is a home to upload to and what was found in it.
type uploadBox struct {
	t    *testing.T
	home string
	j    *jail
}

func newUploadBox(t *testing.T, home string, openat2 bool) *uploadBox {
	return &uploadBox{t: t, home: home, j: enterTestJail(t, openat2, home, nil)}
}

func (b *uploadBox) create(p string, kind uploadKind, offset int64) *upload {
	b.t.Helper()
	u, err := b.j.create(p, kind, offset, true)
	if err != nil {
		b.t.Fatalf("create %q at %d: %v", p, offset, err)
	}
	return u
}

func (b *uploadBox) write(u *upload, text string) {
	b.t.Helper()
	if err := writeUpload(u, text); err != nil {
		b.t.Fatal(err)
	}
}

func (b *uploadBox) commit(u *upload) {
	b.t.Helper()
	if err := u.commit(); err != nil {
		b.t.Fatalf("commit: %v", err)
	}
}

// cut uploads text to p from offset on and breaks off.
func (b *uploadBox) cut(p string, offset int64, text string) {
	b.t.Helper()
	u := b.create(p, uploadStore, offset)
	b.write(u, text)
	u.interrupt()
}

// store uploads text to p from offset on.
func (b *uploadBox) store(p string, offset int64, text string) {
	b.t.Helper()
	u := b.create(p, uploadStore, offset)
	b.write(u, text)
	b.commit(u)
}

// want compares the disk, reserved names included: "name=content ..." by
// name; the partial of NAME shows as NAME~, staging files as themselves.
func (b *uploadBox) want(want string) {
	b.t.Helper()
	entries, err := os.ReadDir(b.home)
	if err != nil {
		b.t.Fatal(err)
	}
	aside := map[string]string{}
	for _, name := range []string{"f", "g", "d", "l"} {
		aside[partialName(name)] = name + "~"
	}
	var list []string
	for _, e := range entries {
		name := e.Name()
		if s, ok := aside[name]; ok {
			name = s
		}
		switch content, err := os.ReadFile(filepath.Join(b.home, e.Name())); {
		case e.IsDir():
			list = append(list, name+"/")
		case err != nil:
			list = append(list, name+"?")
		default:
			list = append(list, name+"="+string(content))
		}
	}
	slices.Sort(list)
	if got := strings.Join(list, " "); got != want {
		b.t.Errorf("on disk: %q; want %q", got, want)
	}
}

// refused expects an offsetError that tells how much is there.
func (b *uploadBox) refused(p string, offset, have int64) {
	b.t.Helper()
	u, err := b.j.create(p, uploadStore, offset, true)
	if err == nil {
		u.discard()
	}
	var oe *offsetError
	if !errors.As(err, &oe) || oe.have != have || oe.want != offset {
		b.t.Errorf("create %q at %d: %v; want an offsetError that has %d", p, offset, err, have)
	}
}

func (b *uploadBox) isPartial(p string) bool {
	var x [1]byte
	n, err := unix.Lgetxattr(b.home+p, partialXattr, x[:])
	return err == nil && n == 1
}

// needXattr skips on a disk that cannot keep the mark of a partial.
func needXattr(t *testing.T, dir string) {
	t.Helper()
	p := dir + "/.xattr-probe"
	defer os.Remove(p)
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(p, partialXattr, []byte{'1'}, 0); err != nil {
		t.Skipf("user attributes on %s: %v", dir, err)
	}
}

// TestUpload is the life of uploads as contract section 5 tells it. Each case
// ends with what is on the disk.
func TestUpload(t *testing.T) {
	tests := []struct {
		name  string
		fs    []string
		xattr bool // needs the mark
		run   func(b *uploadBox)
		disk  string
	}{
		{name: "new", run: func(b *uploadBox) {
			u := b.create("/f", uploadStore, -1)
			b.write(u, "he")
			if _, err := b.j.stat("/f"); !errors.Is(err, fs.ErrNotExist) {
				b.t.Errorf("the name is there before the commit: %v", err)
			}
			if got, _ := jailOps["list"](b.j, "/"); got != "" {
				b.t.Errorf("an upload on its way is listed: %q", got)
			}
			b.write(u, "llo")
			b.commit(u)
			if b.isPartial("/f") {
				b.t.Error("a complete file is marked as partial")
			}
		}, disk: "f=hello"},
		{name: "empty", run: func(b *uploadBox) { b.store("/f", 0, "") }, disk: "f="},
		{name: "over existing", fs: []string{"f = old content"}, run: func(b *uploadBox) {
			reader, _, err := b.j.openFile("/f")
			if err != nil {
				b.t.Fatal(err)
			}
			defer reader.Close()
			u := b.create("/f", uploadStore, 0)
			b.write(u, "new")
			if got, err := jailOps["read"](b.j, "/f"); got != "old content" || err != nil {
				b.t.Errorf("before the commit the name reads %q, %v", got, err)
			}
			b.commit(u)
			if got, _ := io.ReadAll(reader); string(got) != "old content" {
				b.t.Errorf("an open reader got %q", got)
			}
		}, disk: "f=new"},
		{name: "over existing, mode kept", fs: []string{"f"}, run: func(b *uploadBox) {
			if err := os.Chmod(b.home+"/f", 0o4640); err != nil {
				b.t.Fatal(err)
			}
			b.store("/f", 0, "new")
			if info, _ := os.Stat(b.home + "/f"); info.Mode() != 0o640 {
				b.t.Errorf("mode %v; want 0640, without set-id", info.Mode())
			}
		}, disk: "f=new"},
		{name: "over a read-only file", fs: []string{"f"}, run: func(b *uploadBox) {
			os.Chmod(b.home+"/f", 0o400)
			b.store("/f", 0, "new")
			if info, _ := os.Stat(b.home + "/f"); info.Mode() != 0o400 {
				b.t.Errorf("mode %v; want 0400", info.Mode())
			}
		}, disk: "f=new"},
		{name: "discarded", fs: []string{"f = old"}, run: func(b *uploadBox) {
			u := b.create("/f", uploadStore, 0)
			b.write(u, "new")
			u.discard()
			u.interrupt() // of no effect
		}, disk: "f=old"},
		{name: "interrupt after commit", run: func(b *uploadBox) {
			u := b.create("/f", uploadStore, 0)
			b.write(u, "new")
			b.commit(u)
			u.interrupt()
			u.discard()
		}, disk: "f=new"},

		// Interrupted uploads of a new name.
		{name: "new, cut", xattr: true, run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			if !b.isPartial("/f") {
				b.t.Error("what arrived is not marked as partial")
			}
			if e, err := b.j.stat("/f"); e.size != 3 || err != nil {
				b.t.Errorf("SIZE would tell %d, %v; want 3", e.size, err)
			}
		}, disk: "f=abc"},
		{name: "new, cut before the first byte", run: func(b *uploadBox) { b.cut("/f", 0, "") }, disk: ""},
		{name: "new, cut, resumed", xattr: true, run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			b.store("/f", 3, "def")
			if b.isPartial("/f") {
				b.t.Error("a complete file is marked as partial")
			}
		}, disk: "f=abcdef"},
		{name: "new, cut, resumed, cut, resumed", xattr: true, run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			b.cut("/f", 3, "de")
			if !b.isPartial("/f") {
				b.t.Error("what arrived is not marked as partial")
			}
			b.want("f=abcde")
			b.store("/f", 5, "f")
		}, disk: "f=abcdef"},
		{name: "new, cut, resumed, cut before a byte", xattr: true, run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			b.cut("/f", 3, "")
			if !b.isPartial("/f") {
				b.t.Error("what was a partial is none any more")
			}
		}, disk: "f=abc"},
		{name: "new, cut, resumed beyond its end", run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			b.refused("/f", 4, 3)
		}, disk: "f=abc"},
		{name: "new, cut, begun anew", run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			b.store("/f", 0, "xy")
		}, disk: "f=xy"},
		{name: "new, cut, completed by APPE", xattr: true, run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			u := b.create("/f", uploadAppend, -1)
			b.write(u, "def")
			b.commit(u)
			if b.isPartial("/f") {
				b.t.Error("a complete file is marked as partial")
			}
		}, disk: "f=abcdef"},
		{name: "new, cut, APPE cut too", xattr: true, run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			u := b.create("/f", uploadAppend, -1)
			b.write(u, "de")
			u.interrupt()
			if !b.isPartial("/f") {
				b.t.Error("what arrived is not marked as partial")
			}
		}, disk: "f=abcde"},
		{name: "new, cut, APPE cut before a byte", xattr: true, run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			b.create("/f", uploadAppend, -1).interrupt()
		}, disk: "f=abc"},
		{name: "new, cut, removed", run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			if err := b.j.remove("/f"); err != nil {
				b.t.Error(err)
			}
		}, disk: ""},
		{name: "resume taken by one session only", xattr: true, run: func(b *uploadBox) {
			b.cut("/f", 0, "abc")
			u := b.create("/f", uploadStore, 3)
			if _, err := b.j.create("/f", uploadStore, 3, true); err == nil {
				b.t.Error("a second session resumes the same partial")
			}
			b.write(u, "def")
			b.commit(u)
		}, disk: "f=abcdef"},

		// Interrupted uploads over a file.
		{name: "over, cut", fs: []string{"f = old content"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			if e, _ := b.j.stat("/f"); e.size != 11 {
				b.t.Errorf("SIZE would tell %d; want the old file's 11", e.size)
			}
			if got, _ := jailOps["list"](b.j, "/"); got != "f" {
				b.t.Errorf("the partial is listed: %q", got)
			}
			for _, n := range []int64{1, 2, 4, 11, 12} { // neither the old file nor a hole
				b.refused("/f", n, 3)
			}
		}, disk: "f=old content f~=new"},
		{name: "over, cut before the first byte", fs: []string{"f = old"}, run: func(b *uploadBox) { b.cut("/f", 0, "") }, disk: "f=old"},
		{name: "over, cut, resumed", fs: []string{"f = old content"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			b.store("/f", 3, "er")
			if b.isPartial("/f") {
				b.t.Error("a complete file is marked as partial")
			}
		}, disk: "f=newer"},
		{name: "over, cut, resumed, cut", fs: []string{"f = old content"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			b.cut("/f", 3, "e")
			b.want("f=old content f~=newe")
			b.refused("/f", 3, 4)
			b.store("/f", 4, "r")
		}, disk: "f=newer"},
		{name: "over, cut, resumed, cut before a byte", fs: []string{"f = old"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			b.cut("/f", 3, "")
		}, disk: "f=old f~=new"},
		{name: "over, cut, begun anew", fs: []string{"f = old"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "try one")
			b.store("/f", 0, "try two")
		}, disk: "f=try two"},
		{name: "over, cut twice", fs: []string{"f = old"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "try one")
			b.cut("/f", 0, "two")
		}, disk: "f=old f~=two"},
		{name: "over, cut, then a try that brings nothing", fs: []string{"f = old"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "try one")
			b.cut("/f", 0, "")
		}, disk: "f=old f~=try one"},
		{name: "over, cut, the file removed", fs: []string{"f = old"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			if err := b.j.remove("/f"); err != nil {
				b.t.Error(err)
			}
		}, disk: ""},
		// A partial outlives its file only by a rename; it must not be spliced
		// into what gets the name afterwards.
		{name: "over, cut, renamed away, new file", fs: []string{"f = old"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			if err := b.j.rename("/f", "/g", false); err != nil {
				b.t.Error(err)
			}
			b.store("/f", 0, "other")
			b.store("/f", 3, "!")
		}, disk: "f=oth! g=old"},
		{name: "over, cut, renamed away, new file cut", fs: []string{"f = old"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			b.j.rename("/f", "/g", false)
			b.cut("/f", 0, "other")
			b.store("/f", 5, "!")
		}, disk: "f=other! g=old"},
		{name: "over, cut, replaced by rename", fs: []string{"f = old", "g = other"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			b.j.rename("/g", "/f", true)
			b.store("/f", 3, "!")
		}, disk: "f=oth!"},

		// Restarts on a complete file.
		{name: "restart below the size", fs: []string{"f = abcdef"}, run: func(b *uploadBox) {
			u := b.create("/f", uploadStore, 2)
			b.write(u, "X")
			if got, _ := jailOps["read"](b.j, "/f"); got != "abcdef" {
				b.t.Errorf("before the commit the name reads %q", got)
			}
			b.commit(u)
		}, disk: "f=abX"},
		{name: "restart at the size", fs: []string{"f = abcdef"}, run: func(b *uploadBox) { b.store("/f", 6, "ghi") }, disk: "f=abcdefghi"},
		{name: "restart at the size, nothing more", fs: []string{"f = abcdef"}, run: func(b *uploadBox) { b.store("/f", 6, "") }, disk: "f=abcdef"},
		{name: "restart beyond the size", fs: []string{"f = abcdef"}, run: func(b *uploadBox) {
			b.refused("/f", 7, 6)
			b.refused("/f", 1<<62, 6)
		}, disk: "f=abcdef"},
		{name: "restart on nothing", run: func(b *uploadBox) { b.refused("/f", 1, 0) }, disk: ""},
		{name: "restart, cut", fs: []string{"f = abcdef"}, run: func(b *uploadBox) {
			b.cut("/f", 2, "X")
			b.want("f=abcdef f~=abX")
			b.store("/f", 3, "Y")
		}, disk: "f=abXY"},
		{name: "restart, cut before a byte", fs: []string{"f = abcdef"}, run: func(b *uploadBox) {
			b.cut("/f", 2, "")
			b.store("/f", 4, "!") // no copy of the old file is in the way
		}, disk: "f=abcd!"},
		{name: "restart keeps the mode", fs: []string{"f = abcdef"}, run: func(b *uploadBox) {
			os.Chmod(b.home+"/f", 0o604)
			b.store("/f", 3, "")
			if info, _ := os.Stat(b.home + "/f"); info.Mode() != 0o604 {
				b.t.Errorf("mode %v; want 0604", info.Mode())
			}
		}, disk: "f=abc"},

		// APPE.
		{name: "APPE, new", run: func(b *uploadBox) {
			u := b.create("/f", uploadAppend, -1)
			b.write(u, "x")
			b.commit(u)
		}, disk: "f=x"},
		{name: "APPE, new, cut", xattr: true, run: func(b *uploadBox) {
			u := b.create("/f", uploadAppend, -1)
			b.write(u, "x")
			u.interrupt()
			if !b.isPartial("/f") {
				b.t.Error("what arrived is not marked as partial")
			}
		}, disk: "f=x"},
		{name: "APPE, complete", fs: []string{"f = abc"}, run: func(b *uploadBox) {
			u := b.create("/f", uploadAppend, -1)
			b.write(u, "def")
			if got, _ := jailOps["read"](b.j, "/f"); got != "abc" {
				b.t.Errorf("before the commit the name reads %q", got)
			}
			b.commit(u)
		}, disk: "f=abcdef"},
		{name: "APPE, complete, cut", fs: []string{"f = abc"}, run: func(b *uploadBox) {
			u := b.create("/f", uploadAppend, -1)
			b.write(u, "de")
			u.interrupt()
			b.store("/f", 3, "def") // and nothing is in the way of a restart
		}, disk: "f=abcdef"},
		{name: "APPE, empty", fs: []string{"f = "}, run: func(b *uploadBox) {
			u := b.create("/f", uploadAppend, -1)
			b.write(u, "x")
			b.commit(u)
		}, disk: "f=x"},
		{name: "APPE, through a partial aside", fs: []string{"f = abc"}, run: func(b *uploadBox) {
			b.cut("/f", 0, "new")
			u := b.create("/f", uploadAppend, -1)
			b.write(u, "def")
			b.commit(u)
		}, disk: "f=abcdef"},

		// STOU.
		{name: "unique", fs: []string{"f = old"}, run: func(b *uploadBox) {
			p, err := b.j.unique("/f")
			if err != nil || !strings.HasPrefix(p, "/f.") {
				b.t.Fatalf("unique = %q, %v", p, err)
			}
			u := b.create(p, uploadUnique, 0)
			b.write(u, "new")
			b.commit(u)
			if err := os.Rename(b.home+p, b.home+"/g"); err != nil {
				b.t.Error(err)
			}
		}, disk: "f=old g=new"},
		{name: "unique, taken meanwhile", run: func(b *uploadBox) {
			u := b.create("/f", uploadUnique, 0)
			b.write(u, "new")
			b.store("/f", 0, "first")
			if err := u.commit(); !errors.Is(err, fs.ErrExist) {
				b.t.Errorf("commit: %v; want exists", err)
			}
		}, disk: "f=first"},

		// Two uploads of one name: the last commit wins, and neither is mixed.
		{name: "two at once, new", run: func(b *uploadBox) {
			u, v := b.create("/f", uploadStore, 0), b.create("/f", uploadStore, 0)
			b.write(u, "one-")
			b.write(v, "two-")
			b.write(u, "one")
			b.write(v, "two")
			b.commit(v)
			b.want(u.stage + "=one-one f=two-two")
			b.commit(u)
		}, disk: "f=one-one"},
		{name: "two at once, one cut", run: func(b *uploadBox) {
			u, v := b.create("/f", uploadStore, 0), b.create("/f", uploadStore, 0)
			b.write(u, "one")
			b.write(v, "two")
			b.commit(v)
			u.interrupt()
		}, disk: "f=two f~=one"},
		{name: "two at once, both cut", fs: []string{"f = old"}, run: func(b *uploadBox) {
			u, v := b.create("/f", uploadStore, 0), b.create("/f", uploadStore, 0)
			b.write(u, "one")
			b.write(v, "two")
			u.interrupt()
			v.interrupt()
		}, disk: "f=old f~=two"},
		{name: "two appends at once", fs: []string{"f = a"}, run: func(b *uploadBox) {
			u, v := b.create("/f", uploadAppend, -1), b.create("/f", uploadAppend, -1)
			b.write(u, "1")
			b.write(v, "2")
			b.commit(u)
			b.commit(v)
		}, disk: "f=a2"},

		// The target changes while the upload runs.
		{name: "target removed meanwhile", fs: []string{"f = old"}, run: func(b *uploadBox) {
			u := b.create("/f", uploadStore, 0)
			b.write(u, "new")
			if err := b.j.remove("/f"); err != nil {
				b.t.Error(err)
			}
			b.commit(u)
		}, disk: "f=new"},
		{name: "target removed meanwhile, cut", fs: []string{"f = old"}, run: func(b *uploadBox) {
			u := b.create("/f", uploadStore, 0)
			b.write(u, "new")
			b.j.remove("/f")
			u.interrupt()
		}, disk: "f=new"},
		{name: "target made meanwhile, cut", run: func(b *uploadBox) {
			u := b.create("/f", uploadStore, 0)
			b.write(u, "new")
			b.store("/f", 0, "first")
			u.interrupt()
		}, disk: "f=first f~=new"},
		{name: "target became a directory", run: func(b *uploadBox) {
			u := b.create("/d", uploadStore, 0)
			b.write(u, "new")
			if err := b.j.mkdir("/d"); err != nil {
				b.t.Error(err)
			}
			if err := u.commit(); !errors.Is(err, syscall.EISDIR) {
				b.t.Errorf("commit: %v; want EISDIR", err)
			}
		}, disk: "d/"},
		{name: "target became a link out", run: func(b *uploadBox) {
			u := b.create("/l", uploadStore, 0)
			b.write(u, "new")
			if err := os.Symlink("/etc/passwd", b.home+"/l"); err != nil {
				b.t.Error(err)
			}
			b.commit(u)
		}, disk: "l=new"},
		{name: "directory renamed meanwhile", fs: []string{"d/"}, run: func(b *uploadBox) {
			u := b.create("/d/f", uploadStore, 0)
			b.write(u, "new")
			if err := b.j.rename("/d", "/g", false); err != nil {
				b.t.Error(err)
			}
			b.commit(u)
			if got, err := os.ReadFile(b.home + "/g/f"); string(got) != "new" {
				b.t.Errorf("in the renamed directory: %q, %v", got, err)
			}
		}, disk: "g/"},
		{name: "directory not removed under an upload", fs: []string{"d/"}, run: func(b *uploadBox) {
			u := b.create("/d/f", uploadStore, 0)
			b.write(u, "new")
			if err := b.j.rmdir("/d"); err != errBusy {
				b.t.Errorf("rmdir: %v; want errBusy", err)
			}
			u.interrupt()
			b.j.remove("/d/f")
			if err := b.j.rmdir("/d"); err != nil {
				b.t.Errorf("rmdir: %v", err)
			}
		}, disk: ""},
		{name: "directory removed from outside", fs: []string{"d/"}, run: func(b *uploadBox) {
			u := b.create("/d/f", uploadStore, 0)
			b.write(u, "new")
			os.RemoveAll(b.home + "/d")
			if err := u.commit(); !errors.Is(err, fs.ErrNotExist) {
				b.t.Errorf("commit: %v; want not exist", err)
			}
			v, err := b.j.create("/d/f", uploadStore, 0, true)
			if !errors.Is(err, fs.ErrNotExist) {
				v.discard()
				b.t.Errorf("create: %v; want not exist", err)
			}
		}, disk: ""},
		{name: "directory removed from outside, cut", fs: []string{"d/"}, run: func(b *uploadBox) {
			u := b.create("/d/f", uploadStore, 0)
			b.write(u, "new")
			os.RemoveAll(b.home + "/d")
			u.interrupt()
		}, disk: ""},
	}
	inBothJails(t, func(t *testing.T, openat2 bool) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				home := t.TempDir()
				if tt.xattr {
					needXattr(t, home)
				}
				makeTestFiles(t, home, tt.fs)
				b := newUploadBox(t, home, openat2)
				tt.run(b)
				b.want(tt.disk)
			})
		}
	})
}

// TestUploadUmask: a new file gets what the daemon's umask leaves, a replaced
// one keeps its mode all the same. The umask is the process's, so no test runs
// beside this one.
func TestUploadUmask(t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	home := t.TempDir()
	makeTestFiles(t, home, []string{"old"})
	if err := os.Chmod(home+"/old", 0o666); err != nil {
		t.Fatal(err)
	}
	j := enterTestJail(t, haveOpenat2(), home, nil)
	storeText(j, "/new", uploadStore, 0, "x")
	storeText(j, "/old", uploadStore, 0, "x")
	j.mkdir("/dir")
	for name, want := range map[string]fs.FileMode{"new": 0o640, "old": 0o666, "dir": 0o750} {
		if info, err := os.Stat(home + "/" + name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, want)
		}
	}
}

// TestUploadWithoutMarks is a disk without user attributes: a partial of a new
// name cannot be told from a complete file, and a restart still gives the
// right content.
func TestUploadWithoutMarks(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("berth-test", dir, "ramfs", 0, "mode=0755"); err != nil {
		t.Skipf("mount of ramfs: %v; needs root", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	b := newUploadBox(t, dir, haveOpenat2())
	b.cut("/f", 0, "abc")
	b.want("f=abc")
	if b.isPartial("/f") {
		t.Skip("this disk has user attributes")
	}
	b.store("/f", 3, "def")
	b.want("f=abcdef")
	b.cut("/f", 0, "new")
	b.want("f=abcdef f~=new")
	b.store("/f", 3, "er")
	b.want("f=newer")
}

// TestUploadInDropBox: a directory that may be written and not read.
func TestUploadInDropBox(t *testing.T) {
	if !haveOpenat2() {
		t.Skip("os.Root opens no directory that may not be read")
	}
	home := t.TempDir()
	makeTestFiles(t, home, []string{"d/"})
	if err := os.Chmod(home+"/d", 0o300); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(home+"/d", 0o700)
	j := enterTestJail(t, true, home, nil)
	asNobody(t, []string{home, home + "/d"}, func() {
		if err := storeText(j, "/d/f", uploadStore, 0, "x"); err != nil {
			t.Errorf("store: %v", err)
		}
		u, err := j.create("/d/f", uploadStore, 0, true)
		if err != nil {
			t.Errorf("create: %v", err)
			return
		}
		writeUpload(u, "new")
		if err := u.commit(); err != nil {
			t.Errorf("commit: %v", err)
		}
		if d, err := j.openDir("/d"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("openDir: %v, %v; want permission", d, err)
		}
	})
	if got, err := os.ReadFile(home + "/d/f"); string(got) != "new" {
		t.Errorf("stored %q, %v", got, err)
	}
}

// asNobody runs fn without root's right to pass over mode bits, on a thread
// that ends with it. Who is not root anyway keeps his own identity.
func asNobody(t *testing.T, own []string, fn func()) {
	t.Helper()
	const nobody = 65534
	if os.Geteuid() != 0 {
		fn()
		return
	}
	for _, p := range own {
		if err := os.Chown(p, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread is of no more use
		if err := unix.Setfsgid(nobody); err != nil {
			t.Error(err)
		}
		if err := unix.Setfsuid(nobody); err != nil {
			t.Error(err)
			return
		}
		fn()
	}()
	<-done
}

// TestUploadBig: restarts copy and position right beyond the buffers' sizes.
func TestUploadBig(t *testing.T) {
	b := newUploadBox(t, t.TempDir(), haveOpenat2())
	content := make([]byte, 3<<20+17)
	rnd := rand.NewChaCha8([32]byte{1})
	rnd.Read(content)
	if err := os.WriteFile(b.home+"/f", content, 0o600); err != nil {
		t.Fatal(err)
	}
	tail := content[:100]
	for _, n := range []int{1, 65536, 1<<20 + 1, len(content) - 1} {
		os.WriteFile(b.home+"/f", content, 0o600)
		b.store("/f", int64(n), string(tail))
		got, err := os.ReadFile(b.home + "/f")
		if err != nil || !bytes.Equal(got, append(content[:n:n], tail...)) {
			t.Errorf("restart at %d: %d bytes, not the right ones (%v)", n, len(got), err)
		}
	}
}

// TestUploadConcurrent: many sessions store one name; a reader sees one whole
// content each time, and no staging file is left.
func TestUploadConcurrent(t *testing.T) {
	home := t.TempDir()
	j := enterTestJail(t, haveOpenat2(), home, nil)
	text := func(g int) string { return strings.Repeat(string(rune('a'+g)), 5000+g) }
	if err := storeText(j, "/f", uploadStore, 0, text(0)); err != nil {
		t.Fatal(err)
	}
	var writers, reader sync.WaitGroup
	var stop atomic.Bool
	reader.Go(func() {
		for !stop.Load() {
			f, e, err := j.openFile("/f")
			if err != nil {
				t.Errorf("the name was gone: %v", err)
				return
			}
			got, _ := io.ReadAll(f)
			f.Close()
			if g := int(e.size) - 5000; g < 0 || g > 3 || string(got) != text(g) {
				t.Errorf("read a mixture of %d bytes", len(got))
				return
			}
		}
	})
	for g := range 4 {
		writers.Go(func() {
			for i := range 50 {
				u, err := j.create("/f", uploadStore, 0, true)
				if err != nil {
					t.Error(err)
					return
				}
				writeUpload(u, text(g)[:100])
				writeUpload(u, text(g)[100:])
				if i%5 == 4 {
					u.interrupt()
				} else if err := u.commit(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	stop.Store(true)
	reader.Wait()
	entries, _ := os.ReadDir(home)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), stagePrefix) {
			t.Errorf("%s is left", e.Name())
		}
	}
}

// --- rename ---

func TestRename(t *testing.T) {
	tests := []struct {
		from, to string
		replace  bool
		err      error
		changed  string // of a home with file, dir/, full/x, link, other, empty/, linkd
	}{
		{from: "file", to: "new", changed: "-file +new"},
		{from: "file", to: "other", replace: true, changed: "-file ~other"},
		{from: "file", to: "other", err: errExists},
		{from: "file", to: "link", replace: true, changed: "-file ~link"},
		{from: "file", to: "link", err: errExists},
		{from: "file", to: "empty", replace: true, err: errExists},
		{from: "file", to: "full", replace: true, err: errExists},
		{from: "file", to: "linkd", replace: true, changed: "-file ~linkd"},
		{from: "file", to: "file", replace: true},
		{from: "file", to: "file"},
		{from: "file", to: "full/y", changed: "-file +full/y"},
		{from: "file", to: "linkd/y", changed: "-file +full/y"},
		{from: "file", to: "missing/y", err: fs.ErrNotExist},
		{from: "file", to: "other/y", err: syscall.ENOTDIR},
		{from: "link", to: "new", changed: "-link +new"},
		{from: "link", to: "other", replace: true, changed: "-link ~other"},
		{from: "link", to: "other", err: errExists},
		{from: "full", to: "new", changed: "-full -full/x +new +new/x"},
		{from: "full", to: "empty", replace: true, err: errExists},
		{from: "empty", to: "full", replace: true, err: errExists},
		{from: "empty", to: "file", replace: true, err: errExists},
		{from: "empty", to: "link", replace: true, err: errExists},
		{from: "full", to: "full/in", replace: true, err: syscall.EINVAL},
		{from: "full", to: "empty/in", changed: "+empty/in +empty/in/x -full -full/x"},
		{from: "full", to: "full"},
		{from: "linkd", to: "new", changed: "-linkd +new"},
		{from: "missing", to: "new", err: fs.ErrNotExist},
		{from: "missing", to: "other", replace: true, err: fs.ErrNotExist},
		{from: "missing", to: "missing", err: fs.ErrNotExist},
		{from: "file", to: longestName + "n", err: syscall.ENAMETOOLONG},
	}
	inBothJails(t, func(t *testing.T, openat2 bool) {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s to %.8s %t", tt.from, strings.ReplaceAll(tt.to, "/", "."), tt.replace), func(t *testing.T) {
				home := t.TempDir()
				makeTestFiles(t, home, []string{"file", "other", "empty/", "full/x", "link => other", "linkd => full"})
				j := enterTestJail(t, openat2, home, nil)
				before := diskState(t, home)
				if err := j.rename("/"+tt.from, "/"+tt.to, tt.replace); !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
					t.Errorf("rename(%q, %q, %t) = %v; want %v", tt.from, tt.to, tt.replace, err, tt.err)
				}
				if changed := diskChanges(before, diskState(t, home)); changed != tt.changed {
					t.Errorf("rename(%q, %q, %t) changed %q; want %q", tt.from, tt.to, tt.replace, changed, tt.changed)
				}
			})
		}
	})
}

// TestRenameNew is RENAME_NOREPLACE done without it, as on NFS and CephFS: an
// interrupted upload must not replace the old file there either.
func TestRenameNew(t *testing.T) {
	tests := []struct {
		from, to string
		err      error
		changed  string
	}{
		{"file", "new", nil, "-file +new"},
		{"file", "other", unix.EEXIST, ""},
		{"file", "link", unix.EEXIST, ""},
		{"link", "new", nil, "-link +new"},
		{"dir", "new", nil, "-dir +new"},
		{"dir", "file", unix.EEXIST, ""},
		{"dir", "empty", unix.EEXIST, ""},
		{"missing", "new", unix.ENOENT, ""},
	}
	for _, tt := range tests {
		t.Run(tt.from+" to "+tt.to, func(t *testing.T) {
			home := t.TempDir()
			makeTestFiles(t, home, []string{"file", "other", "dir/", "empty/", "link => other"})
			dir, err := os.Open(home)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			before := diskState(t, home)
			d := int(dir.Fd())
			if err := renameNew(d, tt.from, d, tt.to); err != tt.err {
				t.Errorf("renameNew(%q, %q) = %v; want %v", tt.from, tt.to, err, tt.err)
			}
			if changed := diskChanges(before, diskState(t, home)); changed != tt.changed {
				t.Errorf("renameNew(%q, %q) changed %q; want %q", tt.from, tt.to, changed, tt.changed)
			}
		})
	}
}

// --- directory streams ---

func eachName(t testing.TB, j *jail, p string, stat bool) []string {
	t.Helper()
	d, err := j.openDir(p)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	var names []string
	if err := d.each(stat, func(e *entry) error { names = append(names, strings.Clone(e.name)); return nil }); err != nil {
		t.Fatal(err)
	}
	return names
}

// manyFilesDir is where thousands of files are made quickly: in memory, if
// there is such a place.
func manyFilesDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fillDir makes n empty files and returns their names in order.
func fillDir(t testing.TB, dir string, n int) []string {
	t.Helper()
	names := make([]string, n)
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := range n {
		names[i] = fmt.Sprintf("file-%06d.jpg", i)
		fd, err := unix.Openat(int(d.Fd()), names[i], unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	return names
}

func TestEach(t *testing.T) {
	inBothJails(t, func(t *testing.T, openat2 bool) {
		home := t.TempDir()
		makeTestFiles(t, home, []string{"empty/", "some/b", "some/a", "some/.c", "some/B", "some/\xff", "some/.berth-up-1", "some/d/", "some/l => a"})
		j := enterTestJail(t, openat2, home, nil)
		for _, stat := range []bool{false, true} {
			if got := eachName(t, j, "/empty", stat); len(got) != 0 {
				t.Errorf("an empty directory lists %q", got)
			}
			if got, want := eachName(t, j, "/some", stat), []string{".c", "B", "a", "b", "d", "l", "\xff"}; !slices.Equal(got, want) {
				t.Errorf("each = %q; want %q", got, want)
			}
		}
	})
}

// TestEachStat: the entry is what stat(2) tells, for every kind of file.
func TestEachStat(t *testing.T) {
	home := t.TempDir()
	makeTestFiles(t, home, []string{"f = hello", "d/", "l => f", "p | fifo", "s | socket"})
	when := time.Date(1985, 10, 26, 1, 21, 0, 123456789, time.UTC)
	if err := os.Chtimes(home+"/f", when, when); err != nil {
		t.Fatal(err)
	}
	j := enterTestJail(t, haveOpenat2(), home, nil)
	d, err := j.openDir("/")
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if self, err := d.self(); err != nil || !self.isDir() || self.name != "." {
		t.Errorf("self = %+v, %v", self, err)
	}
	got := map[string]string{}
	err = d.each(true, func(e *entry) error {
		got[strings.Clone(e.name)], _ = entryText(*e, nil)
		want, lerr := j.lstat("/" + e.name)
		if lerr != nil || want != *e {
			t.Errorf("each: %+v; lstat: %+v, %v", *e, want, lerr)
		}
		if e.name == "f" && (e.size != 5 || !e.mtime().Equal(when)) {
			t.Errorf("f: size %d, time %v", e.size, e.mtime())
		}
		return nil
	})
	want := map[string]string{"f": "-f", "d": "dd", "l": "ll => f", "p": "pp", "s": "ss"}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("each: %q, %v; want %q", got, err, want)
	}
}

// TestEachStops: an error of the callback ends the walk and is handed back.
func TestEachStops(t *testing.T) {
	home := t.TempDir()
	makeTestFiles(t, home, []string{"a", "b", "c"})
	j := enterTestJail(t, haveOpenat2(), home, nil)
	d, err := j.openDir("/")
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	n := 0
	if err := d.each(true, func(*entry) error { n++; return io.ErrClosedPipe }); err != io.ErrClosedPipe || n != 1 {
		t.Errorf("%d calls, error %v", n, err)
	}
}

// TestEachVanish: names that go away between the reading of the directory and
// the look at them are left out.
func TestEachVanish(t *testing.T) {
	home := t.TempDir()
	makeTestFiles(t, home, []string{"a", "b", "c", "d"})
	j := enterTestJail(t, haveOpenat2(), home, nil)
	d, err := j.openDir("/")
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	var got []string
	err = d.each(true, func(e *entry) error {
		got = append(got, strings.Clone(e.name))
		os.Remove(home + "/b")
		os.Remove(home + "/c")
		return nil
	})
	if want := []string{"a", "d"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("each = %q, %v; want %q", got, err, want)
	}
}

// TestEachSortBound: up to sortBound names come sorted, more come complete.
// The names fill several getdents buffers.
func TestEachSortBound(t *testing.T) {
	home := manyFilesDir(t)
	j := enterTestJail(t, haveOpenat2(), home, nil)
	names := fillDir(t, home, sortBound)
	if got := eachName(t, j, "/", false); !slices.Equal(got, names) {
		t.Errorf("%d names are not listed in order", sortBound)
	}
	more := home + "/more"
	os.Mkdir(more, 0o755)
	names = fillDir(t, more, 5000)
	for _, stat := range []bool{false, true} {
		got := eachName(t, j, "/more", stat)
		slices.Sort(got)
		if !slices.Equal(got, names) {
			t.Errorf("of 5,000 names %d came, or not each once", len(got))
		}
	}
}

// TestEachMemory: what a listing allocates does not come near to a record of
// every name; os.ReadDir takes some 450 bytes for one.
func TestEachMemory(t *testing.T) {
	const small, large, perName = 5000, 20_000, 48 // the NUL-terminated copy that a system call wants
	home := manyFilesDir(t)
	j := enterTestJail(t, haveOpenat2(), home, nil)
	list := func(p string, n int) testing.BenchmarkResult {
		os.Mkdir(home+p, 0o755)
		fillDir(t, home+p, n)
		return allocatedBy(3, func() {
			d, err := j.openDir(p)
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			l := &lister{now: time.Now(), facts: factsAll}
			if err := writeListing(io.Discard, d, true, nil, l.appendLIST); err != nil {
				t.Fatal(err)
			}
		})
	}
	a, b := list("/small", small), list("/large", large)
	if grown := b.AllocedBytesPerOp() - a.AllocedBytesPerOp(); grown > perName*(large-small) {
		t.Errorf("%d more names cost %d more bytes, %d each; want at most %d", large-small, grown, grown/(large-small), perName)
	}
	if grown := b.AllocsPerOp() - a.AllocsPerOp(); grown > large-small+100 { // the pools may be emptied in between
		t.Errorf("%d more names cost %d more allocations; want at most one each", large-small, grown)
	}
}

// allocatedBy measures n runs of fn, after one that fills the pools.
func allocatedBy(n int, fn func()) testing.BenchmarkResult {
	fn()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		fn()
	}
	runtime.ReadMemStats(&after)
	return testing.BenchmarkResult{N: n, MemAllocs: after.Mallocs - before.Mallocs, MemBytes: after.TotalAlloc - before.TotalAlloc}
}

// --- wildcards ---

func TestGlob(t *testing.T) {
	home := t.TempDir()
	makeTestFiles(t, home, []string{"a", "ab", "abb", "b", "c.txt", ".hid", ".berth-up-1", "d/x", "d/y", "e/x", "e/.z", "[", "a*b", `q\r`, "l => d", "out => /etc", "sp ace"})
	tests := []struct{ cwd, pattern, want string }{
		{"/", "*", "[|a|a*b|ab|abb|b|c.txt|d|e|l|out|q\\r|sp ace"},
		{"/", "a*b", "a*b|ab|abb"},
		{"/", "a*", "a|a*b|ab|abb"},
		{"/", "[ab]*", "a|a*b|ab|abb|b"},
		{"/", "[!a-e]*", "[|l|out|q\\r|sp ace"},
		{"/", `\[!a]`, ""},
		{"/", "[^a-e]*", "[|l|out|q\\r|sp ace"},
		{"/", "?", "[|a|b|d|e|l"},
		{"/", "??", "ab"},
		{"/", "*.txt", "c.txt"},
		{"/", "*/x", "d/x|e/x|l/x"},
		{"/", "*/*", "d/x|d/y|e/x|l/x|l/y"},
		{"/", "*/.*", "e/.z"},
		{"/", ".*", ".hid"},
		{"/", "[.]*", ""},
		{"/", `a\*b`, "a*b"},
		{"/", "a*/../b*", ""}, // none is a directory
		{"/", "d*/../b*", "d/../b"},
		{"/", "d/*", "d/x|d/y"},
		{"/", "/d/*", "/d/x|/d/y"},
		{"/", "./d/*", "./d/x|./d/y"},
		{"/", "//d//*", "//d//x|//d//y"},
		{"/d", "*", "x|y"},
		{"/d", "../*.txt", "../c.txt"},
		{"/d", "../../../*.txt", "../../../c.txt"},
		{"/", "*/", "d/|e/|l/"},
		{"/", "d*/", "d/"},
		{"/", "missing/*", ""},
		{"/", "a/*", ""},
		{"/", "out/*", ""},
		{"/", "*/passwd", ""},
		{"/", ".berth-*", ""},
		{"/", "[", ""},
		{"/", "[a", ""},
		{"/", "a[", ""},
		{"/", `\`, ""},
		{"/", "a", "a"},
		{"/", "zzz", ""},
		{"/", "sp*", "sp ace"},
		{"/", "", ""},
	}
	inBothJails(t, func(t *testing.T, openat2 bool) {
		j := enterTestJail(t, openat2, home, nil)
		for _, tt := range tests {
			got, err := j.glob(tt.cwd, tt.pattern)
			if s := strings.Join(got, "|"); s != tt.want || err != nil {
				t.Errorf("glob(%q, %q) = %q, %v; want %q", tt.cwd, tt.pattern, s, err, tt.want)
			}
		}
		for _, bad := range []string{"a\x00*", "a\r*", "a\n*"} {
			if _, err := j.glob("/", bad); err != errBadName {
				t.Errorf("glob(%q): %v; want errBadName", bad, err)
			}
		}
	})
}

// TestGlobBounds has patterns that would look at more names than there are
// atoms. That they end at all is the test; what they did is counted in
// directories opened, which the step limit bounds.
func TestGlobBounds(t *testing.T) {
	home := t.TempDir()
	for i := range 300 {
		os.Mkdir(fmt.Sprintf("%s/d%03d", home, i), 0o755)
	}
	os.Symlink(".", home+"/self")
	j := enterTestJail(t, haveOpenat2(), home, nil)
	for _, pattern := range []string{
		strings.Repeat("*/../", 300) + "*",
		strings.Repeat("*/", 300) + "*",
		strings.Repeat("*/../*/./", 100) + "*",
		strings.Repeat("self/", 2000/5) + strings.Repeat("*/", 40) + "x",
		strings.Repeat("*", 1000) + "x",
		strings.Repeat("*a", 500),
		strings.Repeat("[a-z]*", 300),
		"*/../*/../*/../*",
		strings.Repeat("/", maxPath),
	} {
		got, err := j.glob("/", pattern)
		if err != nil && err != errBadName {
			t.Errorf("glob(%.20q…): %v", pattern, err)
		}
		if len(got) > globResults {
			t.Errorf("glob(%.20q…): %d names; the limit is %d", pattern, len(got), globResults)
		}
	}
}

// --- benchmarks ---

func benchBothJails(b *testing.B, home string, fn func(b *testing.B, j *jail)) {
	for _, openat2 := range []bool{true, false} {
		name := "osroot"
		if openat2 {
			name = "openat2"
		}
		b.Run(name, func(b *testing.B) {
			if openat2 && !haveOpenat2() {
				b.Skip("no openat2(2)")
			}
			fn(b, enterTestJail(b, openat2, home, nil))
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	home := b.TempDir()
	makeTestFiles(b, home, []string{"f", "1/2/3/4/5/f"})
	for _, p := range []string{"/f", "/1/2/3/4/5/f"} {
		b.Run(fmt.Sprintf("%d", strings.Count(p, "/")), func(b *testing.B) {
			benchBothJails(b, home, func(b *testing.B, j *jail) {
				b.ReportAllocs()
				for b.Loop() {
					f, _, err := j.openFile(p)
					if err != nil {
						b.Fatal(err)
					}
					f.Close()
				}
			})
		})
	}
}

func BenchmarkListDirectory(b *testing.B) {
	home := b.TempDir()
	fillDir(b, home, 10_000)
	j := enterTestJail(b, haveOpenat2(), home, nil)
	l := &lister{now: time.Now(), can: permAll, facts: factsAll}
	for name, format := range map[string]listFormat{
		"LIST": l.appendLIST,
		"MLSD": func(b []byte, e *entry) []byte { return append(l.appendMLSx(b, e, ""), '\r', '\n') },
		"NLST": appendNLST,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				d, err := j.openDir("/")
				if err != nil {
					b.Fatal(err)
				}
				if err := writeListing(io.Discard, d, name != "NLST", nil, format); err != nil {
					b.Fatal(err)
				}
				d.close()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10_000, "ns/name")
		})
	}
}

func BenchmarkCleanPath(b *testing.B) {
	for _, p := range []string{"photo.jpg", "/2026/11/21/photo.jpg", "../../a//./b/../c"} {
		b.Run(strings.ReplaceAll(p, "/", "|"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := cleanPath("/camera/front", p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
