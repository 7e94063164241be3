// listing.go writes directories out: as ls(1) prints them, as bare names, and as
// the facts of RFC 3659. It is apart from transfer.go as another question, what
// a line says and not how it travels. Nothing here allocates for an entry.

package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	listBuffer = 64 << 10
	listFirst  = 4 << 10
	listFlush  = listBuffer - 8<<10 // room for the longest line: a name and a link target
)

var listBuffers = sync.Pool{New: func() any { b := make([]byte, 0, listBuffer); return &b }}

// listFormat writes one line for an entry.
type listFormat func(b []byte, e *entry) []byte

// writeListing streams a directory through one buffer: the first lines leave
// while the rest is still being read, and memory does not grow with the
// directory. before, if not nil, comes first.
func writeListing(w io.Writer, d *dirStream, stat bool, before []entry, format listFormat) error {
	bp := listBuffers.Get().(*[]byte)
	defer listBuffers.Put(bp)
	b := (*bp)[:0]
	flush := listFirst // the first lines leave at once, to be seen; later ones in bulk
	add := func(e *entry) error {
		b = format(b, e)
		if len(b) < flush {
			return nil
		}
		flush = min(4*flush, listFlush)
		_, err := w.Write(b)
		b = b[:0]
		return err
	}
	for i := range before {
		if err := add(&before[i]); err != nil {
			return err
		}
	}
	if err := d.each(stat, add); err != nil {
		return err
	}
	if len(b) > 0 {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

const months = "JanFebMarAprMayJunJulAugSepOctNovDec"

// halfYear is how old a file may be for ls(1) to show its time of day.
const halfYear = 182 * 24 * time.Hour

// lister formats entries for one listing. Formatted times are kept for the
// next line, as most files of a directory are of the same day.
type lister struct {
	now   time.Time
	owner jailOwner
	can   permission
	facts mlstFacts

	sec     int64 // what date holds the text of
	date    [12]byte
	started bool
}

// appendLIST is a line of ls -l in the C locale and in UTC.
func (l *lister) appendLIST(b []byte, e *entry) []byte {
	b = appendMode(b, e.mode)
	b = append(b, ' ')
	b = appendPadded(b, int64(e.nlink), 3)
	b = append(b, ' ')
	if e.uid == l.owner.uid {
		b = appendLeft(b, l.owner.name, 8)
	} else {
		b = appendLeft(b, utoa(uint64(e.uid)), 8)
	}
	b = append(b, ' ')
	b = appendLeft(b, utoa(uint64(e.gid)), 8)
	b = append(b, ' ')
	b = appendPadded(b, e.size, 12)
	b = append(b, ' ')
	if !l.started || e.sec/60 != l.sec/60 || e.sec < 0 { // division rounds towards 1970
		l.setDate(e.sec)
	}
	b = append(b, l.date[:]...)
	b = append(b, ' ')
	b = appendShown(b, e.name)
	if e.link != "" {
		b = append(b, " -> "...)
		b = appendShown(b, e.link)
	}
	return append(b, '\r', '\n')
}

func (l *lister) setDate(sec int64) {
	l.sec, l.started = sec, true
	t := time.Unix(sec, 0).UTC()
	y, m, d := t.Date()
	b := append(l.date[:0], months[3*(m-1):3*m]...)
	b = appendPadded(b, int64(d), 3)
	if age := l.now.Sub(t); age < halfYear && age > -24*time.Hour {
		hh, mm, _ := t.Clock()
		b = append(b, ' ', byte('0'+hh/10), byte('0'+hh%10), ':', byte('0'+mm/10), byte('0'+mm%10))
	} else {
		b = appendPadded(b, int64(max(0, min(y, 9999))), 6)
	}
	_ = b
}

// appendNLST is the bare name.
func appendNLST(b []byte, e *entry) []byte {
	b = appendName(b, e.name)
	return append(b, '\r', '\n')
}

// appendMode is the first column of ls -l.
func appendMode(b []byte, mode uint32) []byte {
	kind := byte('?')
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		kind = '-'
	case unix.S_IFDIR:
		kind = 'd'
	case unix.S_IFLNK:
		kind = 'l'
	case unix.S_IFIFO:
		kind = 'p'
	case unix.S_IFSOCK:
		kind = 's'
	case unix.S_IFCHR:
		kind = 'c'
	case unix.S_IFBLK:
		kind = 'b'
	}
	const rwx = "rwxrwxrwx"
	var t [10]byte
	t[0] = kind
	for i := range 9 {
		t[i+1] = '-'
		if mode&(1<<(8-i)) != 0 {
			t[i+1] = rwx[i]
		}
	}
	special := func(bit uint32, at int, set, unset byte) {
		if mode&bit != 0 {
			if t[at] == 'x' {
				t[at] = set
			} else {
				t[at] = unset
			}
		}
	}
	special(unix.S_ISUID, 3, 's', 'S')
	special(unix.S_ISGID, 6, 's', 'S')
	special(unix.S_ISVTX, 9, 't', 'T')
	return append(b, t[:]...)
}

// appendPadded writes n right-aligned in width columns, wider if it must.
func appendPadded(b []byte, n int64, width int) []byte {
	var t [20]byte
	i := len(t)
	neg := n < 0
	u := uint64(n)
	if neg {
		u = -u
	}
	for {
		i--
		t[i] = byte('0' + u%10)
		if u /= 10; u == 0 {
			break
		}
	}
	if neg && i > 0 {
		i--
		t[i] = '-'
	}
	for pad := width - (len(t) - i); pad > 0; pad-- {
		b = append(b, ' ')
	}
	return append(b, t[i:]...)
}

//go:noinline
func utoa(n uint64) string {
	if n == 0 {
		return "0"
	}
	var t [20]byte
	i := len(t)
	for ; n > 0; n /= 10 {
		i--
		t[i] = byte('0' + n%10)
	}
	return string(t[i:])
}

//go:noinline
func appendLeft(b []byte, s string, width int) []byte {
	b = append(b, s...)
	for pad := width - len(s); pad > 0; pad-- {
		b = append(b, ' ')
	}
	return b
}

// appendShown writes a name for people's eyes: control characters become "?",
// as ls(1) does it, so that no name can forge a line or drive a terminal.
//
//go:noinline
func appendShown(b []byte, name string) []byte {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c < ' ' || c == 0x7f {
			c = '?'
		}
		b = append(b, c)
	}
	return b
}

// appendName writes a name for programs: every byte as it is, but CR and LF,
// which would end the line and which no client can send back anyway.
func appendName(b []byte, name string) []byte {
	for i := 0; i < len(name); i++ {
		c := name[i]
		if c == '\r' || c == '\n' {
			c = '?'
		}
		b = append(b, c)
	}
	return b
}

// mlstFacts is the set of facts a session wants (RFC 3659 section 7.8).
type mlstFacts uint16

const (
	factType mlstFacts = 1 << iota
	factSize
	factModify
	factPerm
	factUnique
	factMode
	factOwner
	factGroup
	factsAll = factGroup<<1 - 1
)

// mlstFactNames are the names in the order of the bits. They compare without
// case (RFC 3659 section 7.5), but PHP hands them to scripts as they come, and
// every other server writes these in small letters.
var mlstFactNames = [...]string{"type", "size", "modify", "perm", "unique", "UNIX.mode", "UNIX.owner", "UNIX.group"}

// appendMLSx is a line of RFC 3659 section 7.2, without its line end. kind is
// "cdir", "pdir" or "" for an entry of the directory.
func (l *lister) appendMLSx(b []byte, e *entry, kind string) []byte {
	f := l.facts
	if f&factType != 0 {
		b = append(b, "type="...)
		switch {
		case kind != "":
			b = append(b, kind...)
		case e.isDir():
			b = append(b, "dir"...)
		case e.isFile():
			b = append(b, "file"...)
		case e.mode&unix.S_IFMT == unix.S_IFLNK:
			b = append(b, "OS.unix=slink:"...)
			for i := 0; i < len(e.link); i++ { // a fact ends at ";" and the facts at a space
				if c := e.link[i]; c <= ' ' || c == ';' || c == 0x7f {
					b = append(b, '?')
				} else {
					b = append(b, c)
				}
			}
		default:
			b = append(b, "OS.unix=special"...)
		}
		b = append(b, ';')
	}
	if f&factSize != 0 && e.isFile() {
		b = append(b, "size="...)
		b = appendPadded(b, e.size, 0)
		b = append(b, ';')
	}
	if f&factModify != 0 {
		b = append(b, "modify="...)
		b = appendFTPTime(b, e.sec, 0)
		b = append(b, ';')
	}
	if f&factPerm != 0 {
		b = append(b, "perm="...)
		b = l.appendPerm(b, e)
		b = append(b, ';')
	}
	if f&factUnique != 0 {
		b = append(b, "unique="...)
		b = e.appendUnique(b)
		b = append(b, ';')
	}
	if f&factMode != 0 {
		b = append(b, "UNIX.mode=0"...)
		b = append(b, byte('0'+e.mode>>6&7), byte('0'+e.mode>>3&7), byte('0'+e.mode&7), ';')
	}
	if f&factOwner != 0 {
		b = append(b, "UNIX.owner="...)
		b = appendPadded(b, int64(e.uid), 0)
		b = append(b, ';')
	}
	if f&factGroup != 0 {
		b = append(b, "UNIX.group="...)
		b = appendPadded(b, int64(e.gid), 0)
		b = append(b, ';')
	}
	b = append(b, ' ')
	return appendName(b, e.name)
}

// appendPerm is the "perm" fact (RFC 3659 section 7.5.5): what this user may
// do, as far as his permissions and the mode bits tell.
func (l *lister) appendPerm(b []byte, e *entry) []byte {
	can := func(p permission) bool { return l.can&p != 0 }
	r, w := e.mode&0o444 != 0, e.mode&0o222 != 0
	if e.isDir() {
		if can(permWrite) && w {
			b = append(b, 'c')
		}
		if can(permDelete) {
			b = append(b, 'd')
		}
		b = append(b, 'e')
		if can(permRename) {
			b = append(b, 'f')
		}
		if can(permList) && r {
			b = append(b, 'l')
		}
		if can(permMkdir) && w {
			b = append(b, 'm')
		}
		if can(permDelete) && w {
			b = append(b, 'p')
		}
		return b
	}
	if can(permWrite) && w {
		b = append(b, 'a')
	}
	if can(permDelete) {
		b = append(b, 'd')
	}
	if can(permRename) {
		b = append(b, 'f')
	}
	if can(permRead) && r {
		b = append(b, 'r')
	}
	if can(permWrite) && w {
		b = append(b, 'w')
	}
	return b
}

// appendFTPTime is RFC 3659 section 2.3: YYYYMMDDHHMMSS in UTC, with
// milliseconds if there are any.
func appendFTPTime(b []byte, sec int64, ms int) []byte {
	b = time.Unix(sec, 0).UTC().AppendFormat(b, "20060102150405")
	if ms > 0 {
		b = fmt.Appendf(b, ".%03d", ms)
	}
	return b
}

// parseFTPTime reads what appendFTPTime writes. ok is false for anything else
// and for a date that no calendar has.
func parseFTPTime(s string) (t time.Time, ok bool) {
	if len(s) < 14 {
		return t, false
	}
	for i := range 14 {
		if s[i] < '0' || s[i] > '9' {
			return t, false
		}
	}
	if len(s) > 14 && (s[14] != '.' || len(s) == 15 || len(s) > 24) {
		return t, false
	}
	layout := "20060102150405"
	t, err := time.Parse(layout, s)
	return t, err == nil
}
