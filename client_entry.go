// client_entry.go is one entry of a tree: how a line of the box's listing becomes one,
// and which names of the box's must not become names here. It is a file of its own
// because ls, get and sync all begin with it, and because the first is made to be fast
// and the second to be safe; walking trees is client_tree.go's.

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"
)

// maxNamePart is NAME_MAX of Linux.
const maxNamePart = 255

// maxTreeName is the longest name that a recursive list has: its depth is bounded.
const maxTreeName = (maxDepth + 1) * (maxNamePart + 1)

// A treeEntry is a name and what is known of it: of the disk here, or of a line of the
// box's listing.
type treeEntry struct {
	name   string // with "/" between its parts, relative to what was read
	kind   byte   // 'f' file, 'd' directory, 'l' symbolic link, 'o' anything else
	size   int64
	mtime  int64 // nanoseconds since 1970
	mode   uint32
	target string // of a link
}

// parseListLine reads a line of the listing that the request list gives (docs/protocol.md),
// without its LF. e keeps no part of line.
func parseListLine(line []byte, e *treeEntry) error {
	if err := borrowListLine(line, e); err != nil {
		return err
	}
	e.name, e.target = strings.Clone(e.name), strings.Clone(e.target)
	return nil
}

// borrowListLine is parseListLine with strings that may lie in line: they hold as long.
func borrowListLine(line []byte, e *treeEntry) error {
	if scanListLine(line, e) {
		return nil
	}
	return decodeListLine(line, e)
}

// decodeListLine reads any line of a listing.
func decodeListLine(line []byte, e *treeEntry) error {
	var l struct {
		Name      *string   `json:"name"`
		NameBytes []byte    `json:"name_bytes"`
		Type      string    `json:"type"`
		Size      int64     `json:"size"`
		MTime     time.Time `json:"mtime"`
		Mode      string    `json:"mode"`
		Target    string    `json:"target"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return errorf("a line of the listing cannot be read: %w", err)
	}
	mode, err := strconv.ParseUint(l.Mode, 8, 32)
	if err != nil && l.Mode != "" {
		return errorf("a line of the listing has the mode %q, which is not octal", l.Mode)
	}
	if l.Size < 0 {
		return errorf("a line of the listing has the size %d", l.Size)
	}
	*e = treeEntry{kind: 'o', size: l.Size, mode: uint32(mode), target: l.Target}
	if !l.MTime.IsZero() {
		e.mtime = nanoTime(l.MTime.Unix(), int64(l.MTime.Nanosecond()))
	}
	switch {
	case l.NameBytes != nil:
		e.name = string(l.NameBytes)
	case l.Name != nil:
		e.name = *l.Name
	default:
		return newError("a line of the listing has no name")
	}
	switch l.Type {
	case "file":
		e.kind = 'f'
	case "dir":
		e.kind = 'd'
	case "link":
		e.kind = 'l'
	}
	return nil
}

// nanoTime is a time in nanoseconds; what is beyond them is as near as it can be.
func nanoTime(sec, nsec int64) int64 {
	const most = math.MaxInt64/1_000_000_000 - 1
	return max(-most, min(sec, most))*1_000_000_000 + nsec
}

// scanListLine reads a line of the exact shape in which berth writes nearly all of
// them; encoding/json takes some twenty times as long. It is false for any other,
// and then e means nothing.
func scanListLine(line []byte, e *treeEntry) bool {
	rest, ok := skipText(line, `{"name":"`)
	if !ok {
		return false
	}
	name, rest, ok := plainString(rest)
	if !ok {
		return false
	}
	if rest, ok = skipText(rest, `,"type":"`); !ok {
		return false
	}
	kind, rest, ok := plainString(rest)
	if !ok {
		return false
	}
	switch string(kind) {
	case "file":
		e.kind = 'f'
	case "dir":
		e.kind = 'd'
	case "link":
		e.kind = 'l'
	default:
		e.kind = 'o'
	}
	if rest, ok = skipText(rest, `,"size":`); !ok {
		return false
	}
	n := 0
	for e.size = 0; n < len(rest) && rest[n]-'0' <= 9; n++ {
		e.size = e.size*10 + int64(rest[n]-'0')
	}
	if n == 0 || n > 18 || n > 1 && rest[0] == '0' {
		return false
	}
	if rest, ok = skipText(rest[n:], `,"mtime":"`); !ok {
		return false
	}
	when, rest, ok := plainString(rest)
	if !ok || !scanTime(when, &e.mtime) {
		return false
	}
	if rest, ok = skipText(rest, `,"mode":"`); !ok {
		return false
	}
	mode, rest, ok := plainString(rest)
	if !ok || len(mode) == 0 || len(mode) > 8 {
		return false
	}
	e.mode = 0
	for _, c := range mode {
		if c < '0' || c > '7' {
			return false
		}
		e.mode = e.mode<<3 | uint32(c-'0')
	}
	e.target = ""
	if more, ok := skipText(rest, `,"target":"`); ok {
		var to []byte
		if to, rest, ok = plainString(more); !ok {
			return false
		}
		e.target = borrowed(to)
	}
	e.name = borrowed(name)
	return string(rest) == "}"
}

func borrowed(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

//go:noinline
func skipText(b []byte, text string) ([]byte, bool) {
	if len(b) < len(text) || string(b[:len(text)]) != text {
		return nil, false
	}
	return b[len(text):], true
}

// plainString takes a JSON string off b, behind its first quote, if what it stands
// for is what it is: UTF-8 without escapes.
func plainString(b []byte) (s, rest []byte, ok bool) {
	var all byte
	for i, c := range b {
		if c == '"' {
			if all >= utf8.RuneSelf && !utf8.Valid(b[:i]) {
				return nil, nil, false
			}
			return b[:i], b[i+1:], true
		}
		if c < ' ' || c == '\\' {
			return nil, nil, false
		}
		all |= c
	}
	return nil, nil, false
}

// scanTime reads 2026-11-21T12:00:00.25Z.
func scanTime(b []byte, ns *int64) bool {
	const shape = "0000-00-00T00:00:00"
	if len(b) < len(shape)+1 || b[len(b)-1] != 'Z' {
		return false
	}
	for i := range len(shape) {
		if shape[i] == '0' && b[i]-'0' > 9 || shape[i] != '0' && shape[i] != b[i] {
			return false
		}
	}
	two := func(i int) int { return int(b[i]-'0')*10 + int(b[i+1]-'0') }
	year, month, day := two(0)*100+two(2), two(5), two(8)
	hour, minute, second := two(11), two(14), two(17)
	// Days that not every month has are left to package time.
	if month < 1 || month > 12 || day < 1 || day > 28 && (month == 2 || day > 30) || hour > 23 || minute > 59 || second > 59 {
		return false
	}
	nsec := int64(0)
	if fraction := b[len(shape) : len(b)-1]; len(fraction) > 0 {
		if fraction[0] != '.' || len(fraction) == 1 || len(fraction) > 10 {
			return false
		}
		for i := 1; i < 10; i++ {
			nsec *= 10
			if i < len(fraction) {
				if fraction[i]-'0' > 9 {
					return false
				}
				nsec += int64(fraction[i] - '0')
			}
		}
	}
	// Days since 1970: years begin in March here, so that the leap day is the last.
	y, m := int64(year), int64(month)
	if m <= 2 {
		y, m = y-1, m+12
	}
	days := 365*y + floorDiv(y, 4) - floorDiv(y, 100) + floorDiv(y, 400) + (153*(m-3)+2)/5 + int64(day) - 1 - 719468
	sec := days*86400 + int64(hour*3600+minute*60+second)
	if year == 1 && month == 1 && day == 1 {
		return false // package time's zero
	}
	*ns = nanoTime(sec, nsec)
	return true
}

func floorDiv(a, b int64) int64 {
	if a < 0 {
		return (a - b + 1) / b
	}
	return a / b
}

// badRemoteName is why a name of the box's is no name for a file here, or empty. A
// server sends none of these unless it is out of order, or up to something.
func badRemoteName(name string) (why string) {
	switch {
	case name == "":
		return "it is empty"
	case name[0] == '/':
		return "it begins with a slash"
	}
	for i := 0; i < len(name); i++ {
		if name[i] < ' ' || name[i] == 0x7f {
			return "it has a control character"
		}
	}
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "":
			return "a part of it is empty"
		case part == "." || part == "..":
			return fmt.Sprintf("it has %q in it", part)
		case len(part) > maxNamePart:
			return fmt.Sprintf("a part of it is longer than %d bytes", maxNamePart)
		case isReserved(part):
			return fmt.Sprintf("names that begin with %q are berth's own", reservedPrefix)
		}
	}
	return ""
}
