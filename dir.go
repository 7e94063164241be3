// dir.go reads directories in constant memory and expands wildcards in bounded
// time. It is apart from fs.go as another question: that one asks what a name
// leads to, this one which names there are.

package main

import (
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An entry is one name and what stat(2) says about it.
type entry struct {
	name     string
	link     string // where a symbolic link points
	mode     uint32 // st_mode: type and permissions
	uid, gid uint32
	nlink    uint64
	size     int64
	sec      int64 // mtime
	nsec     int64
	dev, ino uint64
}

func (e *entry) fromStat(st *unix.Stat_t) {
	e.mode, e.uid, e.gid = st.Mode, st.Uid, st.Gid
	e.nlink, e.size = uint64(st.Nlink), st.Size
	e.sec, e.nsec = int64(st.Mtim.Sec), int64(st.Mtim.Nsec)
	e.dev, e.ino = uint64(st.Dev), st.Ino
}

func (e *entry) isDir() bool  { return e.mode&unix.S_IFMT == unix.S_IFDIR }
func (e *entry) isFile() bool { return e.mode&unix.S_IFMT == unix.S_IFREG }

//go:noinline
func (e *entry) mtime() time.Time { return time.Unix(e.sec, e.nsec) }

// mustBeFile says why e cannot be read or replaced as a file.
func (e *entry) mustBeFile() error {
	switch {
	case e.isFile():
		return nil
	case e.isDir():
		return errIsDir
	}
	return errNotRegular
}

const (
	direntBuffer = 64 << 10 // getdents64(2): larger buffers measured no faster
	// sortBound is up to how many names a directory is listed in order. Beyond
	// it the order is the disk's: sorting needs all the names in memory before
	// the first can be sent.
	sortBound = 2048
)

// A dirStream reads a directory in constant memory: getdents64 into one
// pooled buffer, and fstatat by the directory's descriptor, so that no name is
// resolved twice and none can lead elsewhere.
type dirStream struct {
	dir    *os.File
	shares []entry // shown at the root of a home
	st     unix.Stat_t
}

var direntBuffers = sync.Pool{New: func() any { b := make([]byte, direntBuffer); return &b }}

// openDir opens the directory p for listing.
func (j *jail) openDir(p string) (*dirStream, error) {
	t, rel := j.locate(p)
	f, err := t.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	d := &dirStream{dir: f}
	if p == "/" {
		for name, t := range j.shares {
			var e entry
			if fstat(t.dir, &e) == nil {
				e.name = name
				if !t.write {
					e.mode &^= 0o222
				}
				d.shares = append(d.shares, e)
			}
		}
		sort.Slice(d.shares, func(i, j int) bool { return d.shares[i].name < d.shares[j].name })
	}
	return d, nil
}

func (d *dirStream) close() { d.dir.Close() }

// self tells about the directory itself.
func (d *dirStream) self() (entry, error) {
	var e entry
	err := fstat(d.dir, &e)
	e.name = "."
	return e, err
}

// each calls fn for every entry but ".", ".." and reserved names, sorted by
// name where there are at most sortBound of them. With stat false only name
// is set. The entry and its strings hold only until fn returns. A name that
// vanishes meanwhile is left out.
func (d *dirStream) each(stat bool, fn func(*entry) error) error {
	bp := direntBuffers.Get().(*[]byte)
	defer direntBuffers.Put(bp)
	buf := *bp
	var e entry
	for i := range d.shares {
		if err := fn(&d.shares[i]); err != nil {
			return err
		}
	}
	emit := func(name []byte) error {
		e.name = unsafe.String(&name[0], len(name))
		if stat {
			switch err := d.stat(&e); err {
			case nil:
			case unix.ENOENT:
				return nil
			default:
				// As in a directory that may be read and not searched: the name is
				// all that can be told, and no reason to withhold the others.
				e = entry{name: e.name}
			}
		}
		return fn(&e)
	}
	var held [][]byte // names kept back for sorting
	sorting := true
	var arena []byte
	for {
		n, err := unix.Getdents(int(d.dir.Fd()), buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		for rest := buf[:n]; len(rest) > 0; {
			var name []byte
			name, rest = nextDirent(rest)
			if !d.shown(name) {
				continue
			}
			if !sorting {
				if err := emit(name); err != nil {
					return err
				}
				continue
			}
			arena = append(arena, name...)
			held = append(held, arena[len(arena)-len(name):])
			if len(held) > sortBound {
				sorting = false
				for _, name := range held {
					if err := emit(name); err != nil {
						return err
					}
				}
				held, arena = nil, nil
			}
		}
	}
	slices.SortFunc(held, func(a, b []byte) int { return strings.Compare(string(a), string(b)) })
	for _, name := range held {
		if err := emit(name); err != nil {
			return err
		}
	}
	return nil
}

// nextDirent takes the first name off what getdents64(2) returned.
func nextDirent(buf []byte) (name, rest []byte) {
	// struct linux_dirent64: u64 ino, s64 off, u16 reclen, u8 type, name
	const nameAt = 19
	reclen := int(*(*uint16)(unsafe.Pointer(&buf[16])))
	name = buf[nameAt:reclen]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	return name, buf[reclen:]
}

// shown leaves out ".", "..", what berth reserves, and names that a share hides.
func (d *dirStream) shown(name []byte) bool {
	if len(name) == 0 || name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.') {
		return false
	}
	if name[0] == '.' && isReserved(unsafe.String(&name[0], len(name))) {
		return false
	}
	for i := range d.shares {
		if d.shares[i].name == string(name) {
			return false
		}
	}
	return true
}

// stat fills e for its name, without following a link.
func (d *dirStream) stat(e *entry) error {
	st := &d.st
	for {
		err := unix.Fstatat(int(d.dir.Fd()), e.name, st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	e.fromStat(st)
	e.link = ""
	if e.mode&unix.S_IFMT == unix.S_IFLNK {
		e.link = readlink(int(d.dir.Fd()), e.name)
	}
	return nil
}

const (
	globSteps   = 100_000 // names and directories looked at in one expansion
	globDepth   = 16      // components with a wildcard
	globResults = 20_000  // names returned
	globBytes   = 8 << 20 // of them: a long path in front makes each one long
	globMatch   = 1 << 10 // bytes of pattern times bytes of name that one step may cost
)

// glob expands the wildcards of pattern (*, ?, [set]; a backslash takes the
// next byte literally) below cwd and returns the names as pattern spells them,
// sorted. The work is bounded: globSteps, globDepth, globResults and globBytes
// cut it short without an error, as the list would be useless anyway.
func (j *jail) glob(cwd, pattern string) ([]string, error) {
	if strings.Count(pattern, "/") > maxPath/2 || strings.ContainsAny(pattern, "\x00\r\n") {
		return nil, errBadName
	}
	var out []string
	steps, depth, held := 0, 0, 0
	var walk func(prefix, rest string) error
	walk = func(prefix, rest string) error {
		for strings.HasPrefix(rest, "/") {
			prefix, rest = prefix+"/", rest[1:]
		}
		if steps++; steps > globSteps || len(out) >= globResults || held > globBytes {
			return nil // without opening what would not be looked at
		}
		part, tail, more := strings.Cut(rest, "/")
		if !isGlob(part) {
			if !more {
				p, err := cleanPath(cwd, prefix+part)
				if err != nil {
					return nil
				}
				if _, err := j.lstat(p); err == nil {
					out = append(out, prefix+part)
					held += len(prefix) + len(part)
				}
				return nil
			}
			return walk(prefix+part+"/", tail)
		}
		if depth++; depth > globDepth {
			return nil
		}
		defer func() { depth-- }()
		dir, err := cleanPath(cwd, prefix)
		if err != nil {
			return nil
		}
		d, err := j.openDir(dir)
		if err != nil {
			return nil
		}
		var names []string
		set := globSets(part)
		err = d.each(false, func(e *entry) error {
			steps += 1 + len(set)*len(e.name)/globMatch
			if steps > globSteps || len(out)+len(names) >= globResults || held > globBytes {
				return io.EOF
			}
			if strings.HasPrefix(e.name, ".") && !strings.HasPrefix(part, ".") {
				return nil
			}
			ok, err := path.Match(set, e.name)
			if err != nil {
				return err
			}
			if ok {
				names = append(names, strings.Clone(e.name))
				held += len(prefix) + len(e.name)
			}
			return nil
		})
		d.close()
		if err != nil && err != io.EOF {
			return err
		}
		slices.Sort(names)
		for _, name := range names {
			if !more {
				out = append(out, prefix+name)
				continue
			}
			held -= len(prefix) + len(name)
			if steps > globSteps {
				continue
			}
			// Only a directory has anything below it, "." and ".." included.
			if p, err := cleanPath(cwd, prefix+name); err != nil || j.isDir(p) != nil {
				continue
			}
			if err := walk(prefix+name+"/", tail); err != nil {
				return err
			}
		}
		return nil
	}
	err := walk("", pattern)
	if errors.Is(err, path.ErrBadPattern) {
		err = nil // "[" alone: no such name, and no wildcard either
	}
	return out, err
}

// globSets turns the shells' "[!a-z]" into the "[^a-z]" of path.Match, which
// would else take it for a set of names with the very letters to be left out:
// BSD clients delete what NLST names.
func globSets(part string) string {
	if !strings.Contains(part, "[!") {
		return part
	}
	b := []byte(part)
	for i := 0; i+1 < len(b); i++ {
		if b[i] == '\\' {
			i++
		} else if b[i] == '[' && b[i+1] == '!' {
			b[i+1] = '^'
		}
	}
	return string(b)
}

// isGlob tells whether a name has a wildcard in it.
func isGlob(name string) bool { return strings.ContainsAny(name, "*?[") }

// uniqueFact is the "unique" fact of RFC 3659 section 7.5.2: the same for two
// names only if they are the same file.
func (e *entry) appendUnique(b []byte) []byte {
	b = strconv.AppendUint(b, e.dev, 16)
	b = append(b, 'g')
	return strconv.AppendUint(b, e.ino, 16)
}
