// The lines of client_progress.go: running and finished files as text, the numbers
// in them and the cells they take. The file is its own because all of it is plain
// arithmetic: it knows no clock, no lock and no terminal, only a width it is given.
// The words of plainLine and jsonLine are a promise to scripts.

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// A progressRow is what a line shows, before there is a line.
type progressRow struct {
	name     string
	pos      int64
	resumed  int64
	size     int64 // -1: not known
	complete bool  // no more to come, so 100% may be said
	rate     string
	left     string // what the last column says
	doing    string
}

// A progressLayout is which columns fit into a terminal, and how wide they are.
//
//	name name name  [====#####     ]  45%  12.3 MiB  1.23 MiB/s    0:23 ETA
type progressLayout struct {
	cells             int // all of a line: one less than the terminal has
	name, bar         int // bar with its brackets; 0: none
	bytes, rate, left bool
	tiny              bool // nothing but the percentage
}

// Widths of columns with the two spaces before them.
const (
	progressPercentCells = 2 + len("100%")
	progressBytesCells   = 2 + len("1023 MiB")
	progressRateCells    = 2 + len("1023 MiB/s")
	progressLeftCells    = 2 + len("9:59:59 ETA")
	progressBarMost      = 42 // a longer bar tells no more; the name has more to tell
)

// progressLayoutFor gives up the time left below 60 columns, the rate below 48, the
// bar below 36, the bytes below 30 and all but the percentage below 20.
func progressLayoutFor(cols int) progressLayout {
	l := progressLayout{cells: cols - 1, tiny: cols < 20, bytes: cols >= 30, rate: cols >= 48, left: cols >= 60}
	free := l.cells - progressPercentCells
	if l.bytes {
		free -= progressBytesCells
	}
	if l.rate {
		free -= progressRateCells
	}
	if l.left {
		free -= progressLeftCells
	}
	l.name = max(free, 0)
	if cols >= 36 {
		l.bar = min(max((free-2)*9/20, 8), progressBarMost)
		l.name = free - l.bar - 2
	}
	return l
}

// room is how many cells the name of something of that size has: where the size is
// not known there is no bar.
func (l progressLayout) room(size int64) int {
	if size < 0 && l.bar > 0 {
		return l.name + 2 + l.bar
	}
	return l.name
}

// line is r as one line of at most l.cells cells, without a space at its end.
func (l progressLayout) line(r progressRow) string {
	percent := ""
	if r.size >= 0 {
		percent = progressPercent(r.pos, r.size, r.complete)
	}
	if l.tiny {
		if percent == "" {
			percent = humanBytes(r.pos)
		}
		if len(percent) > l.cells {
			return "" // half a number is a wrong one
		}
		return percent
	}
	var b builder
	name := l.room(r.size)
	if r.doing == "" || l.rate {
		screenPad(&b, screenShorten(r.name, name), name)
		if l.bar > 0 && r.size >= 0 {
			b.WriteString("  ")
			progressBar(&b, r, l.bar)
		}
		b.WriteString("  ")
		progressRight(&b, percent, 4)
		if l.bytes {
			b.WriteString("  ")
			progressRight(&b, humanBytes(r.pos), 8)
		}
		tail := l.cells - screenCells(b.String()) - 2
		switch {
		case r.doing != "":
			b.WriteString("  " + screenCut(r.doing, tail))
		case l.rate:
			b.WriteString("  ")
			progressRight(&b, r.rate, 10)
			if l.left && r.left != "" {
				b.WriteString("  ")
				progressRight(&b, r.left, 11)
			}
		}
	} else {
		// What it does is worth more than the numbers that do not move meanwhile.
		doing := screenCut(r.doing, l.cells-2-8)
		name = l.cells - 2 - screenCells(doing)
		screenPad(&b, screenShorten(r.name, name), name)
		b.WriteString("  " + doing)
	}
	return strings.TrimRight(screenCut(b.String(), l.cells), " ")
}

// progressBar draws width cells: what was there before as "=", what was moved as "#".
func progressBar(b *builder, r progressRow, width int) {
	in := width - 2
	full, old := in, 0
	if r.size > 0 {
		full = progressShare(r.pos, r.size, in)
		old = min(progressShare(r.resumed, r.size, in), full)
	}
	b.WriteByte('[')
	for i := range in {
		switch {
		case i < old:
			b.WriteByte('=')
		case i < full:
			b.WriteByte('#')
		default:
			b.WriteByte(' ')
		}
	}
	b.WriteByte(']')
}

// progressShare is how many of cells part of all is, and never all before the end.
func progressShare(part, all int64, cells int) int {
	if part >= all {
		return cells
	}
	if part <= 0 {
		return 0
	}
	return min(int(float64(part)/float64(all)*float64(cells)), cells-1)
}

// progressPercent rounds down: 100% is the end and nothing before it.
func progressPercent(pos, size int64, complete bool) string {
	n := 100
	if size > 0 {
		n = progressShare(pos, size, 100)
	}
	if n == 100 && !complete {
		n = 99
	}
	return itoa(n) + "%"
}

// barLine is a finished file on a terminal with bars, as scp shows it.
func (p *progress) barLine(shown string, r progressResult, took time.Duration, cols int) string {
	if !r.transfers() {
		return string(bytes.TrimSuffix(p.plainLine(shown, r, took), []byte("\n")))
	}
	cells := max(cols-1, 12) // below that it may wrap: better than no name
	rate := "-"
	if s := took.Seconds(); r.bytes > 0 && s > 0 {
		rate = humanBytes(int64(float64(r.bytes)/s)) + "/s"
	}
	var note string
	if r.note != "" {
		note = "  (" + shownText(r.note) + ")"
	}
	column := func(s string, width int) string { return strings.Repeat(" ", max(width-len(s), 2)) + s }
	right := []string{
		column("100%", progressPercentCells),
		column(humanBytes(r.size), progressBytesCells),
		column(rate, progressRateCells),
		column(progressTime(took), 2+len("9:59:59")),
	}
	free := cells - screenCells(note)
	for _, s := range right {
		free -= len(s)
	}
	// The name is worth more than the numbers, the note more than both.
	for _, i := range []int{2, 3, 1} {
		if free >= min(screenCells(shown), 16) {
			break
		}
		free += len(right[i])
		right[i] = ""
	}
	if free < 8 {
		right[0], free = "", cells
	}
	var b builder
	screenPad(&b, screenShorten(shown, free), free)
	for _, s := range right {
		b.WriteString(s)
	}
	b.WriteString(note)
	return strings.TrimRight(b.String(), " ")
}

// plainLine is a finished file without bars. Scripts read it, so it stays as it is:
//
//	put photos/a.jpg 1234567 bytes 0.42s
//	put photos/a.jpg 1234567 bytes 0.42s (resumed at 12.0 MiB)
//	delete photos/old.jpg
//	move photos/a.jpg -> photos/b.jpg
//
// The first word is the verb, in a sync what it did; the bytes are the file's size.
// With verbose "sha256" and the digest follow the time.
func (p *progress) plainLine(shown string, r progressResult, took time.Duration) []byte {
	b := []byte(p.verb)
	if r.action != "" {
		b = []byte(r.action)
	}
	b = append(b, ' ')
	switch {
	case r.action == "move":
		b = append(b, shownText(r.from)...)
		b = append(b, " -> "...)
		b = append(b, shownText(r.to)...)
	case !r.transfers():
		b = append(b, shown...)
	default:
		b = append(b, shown...)
		b = append(b, ' ')
		b = strconv.AppendInt(b, r.size, 10)
		b = append(b, " bytes"...)
		if p.verb != "sync" { // whose dry run prints the same
			b = append(b, ' ')
			b = strconv.AppendFloat(b, took.Seconds(), 'f', 2, 64)
			b = append(b, 's')
		}
		if p.verbose && r.sha256 != "" {
			b = append(b, " sha256 "...)
			b = append(b, r.sha256...)
		}
	}
	if r.note != "" {
		b = append(b, " ("...)
		b = append(b, shownText(r.note)...)
		b = append(b, ')')
	}
	return append(b, '\n')
}

// A progressJSON is a finished line for programs. Names are as they are, but bytes
// that are not UTF-8, for which JSON has no place, are U+FFFD.
type progressJSON struct {
	Verb    string  `json:"verb"`
	Action  string  `json:"action,omitempty"`
	From    string  `json:"from"`
	To      string  `json:"to"`
	Size    int64   `json:"size"`
	Bytes   int64   `json:"bytes"` // moved by this process
	Seconds float64 `json:"seconds"`
	SHA256  string  `json:"sha256,omitempty"`
	Resumed int64   `json:"resumed"` // moved by an earlier one
	Note    string  `json:"note,omitempty"`
	Error   string  `json:"error,omitempty"`
}

func (f *progressFile) jsonLine(r progressResult, kept int64, took time.Duration) []byte {
	l := progressJSON{Verb: f.p.verb, Action: r.action, From: r.from, To: r.to, Size: r.size, Bytes: r.bytes,
		Seconds: math.Round(took.Seconds()*1000) / 1000, SHA256: r.sha256, Resumed: kept, Note: r.note}
	if l.From == "" && l.To == "" {
		l.From = f.name
	}
	if r.err != nil {
		l.Error = r.err.Error()
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // names with & and < are to be greppable
	if err := e.Encode(&l); err != nil {
		return nil // strings and finite numbers only: cannot be
	}
	return progressEscape(b.Bytes())
}

// progressEscape writes the characters that JSON leaves alone and a terminal may
// obey or hide (DEL, CSI, marks that turn the direction of writing) as \uXXXX.
func progressEscape(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r < 0x7f || unicode.IsPrint(r) {
			out = append(out, b[:n]...)
		} else if hi, lo := utf16.EncodeRune(r); hi != utf8.RuneError {
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		} else {
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out
}

// --- numbers ---

// A progressRate is bytes a second over the last seconds: both bytes and time fade
// with the same weight, so that it is right from the first second on.
type progressRate struct {
	last  time.Time // of the last sample
	seen  int64
	bytes float64
	secs  float64
	alive time.Time // when bytes last came
	shown float64   // the rate people see
	fresh time.Time // when they began to see it
}

func (r *progressRate) sample(now time.Time, moved int64) {
	d := now.Sub(r.last).Seconds()
	if r.last.IsZero() || d <= 0 {
		return
	}
	w := math.Exp(-d / progressMemory.Seconds())
	r.bytes = r.bytes*w + float64(moved-r.seen)
	r.secs = r.secs*w + d
	if moved != r.seen {
		r.alive = now
	}
	r.last, r.seen = now, moved
	if now.Sub(r.fresh) >= progressNumbers {
		r.fresh = now
		if r.secs >= progressNumbers.Seconds() {
			r.shown = r.bytes / r.secs
		}
	}
}

// String is the rate as a column, empty before there is one.
func (r *progressRate) String() string {
	if r.shown < 1 {
		return ""
	}
	return humanBytes(int64(r.shown)) + "/s"
}

// left is the time that n bytes take, as a column.
func (r *progressRate) left(n int64) string {
	if r.shown < 1 || n < 0 {
		return ""
	}
	s := float64(n) / r.shown
	if s > 100*24*3600 {
		return ""
	}
	return progressTime(time.Duration(math.Ceil(s)*float64(time.Second))) + " ETA"
}

// progressTime is at most seven cells up to a hundred days: 0:03, 1:02:03, 23h59m, 4d04h.
func progressTime(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	two := func(n int64) string { return string([]byte{'0' + byte(n/10), '0' + byte(n%10)}) }
	switch h := s / 3600; {
	case h == 0:
		return strconv.FormatInt(s/60, 10) + ":" + two(s%60)
	case h < 10:
		return strconv.FormatInt(h, 10) + ":" + two(s/60%60) + ":" + two(s%60)
	case h < 24:
		return strconv.FormatInt(h, 10) + "h" + two(s/60%60) + "m"
	default:
		return strconv.FormatInt(h/24, 10) + "d" + two(h%24) + "h"
	}
}

// humanBytes is a number of bytes with three significant digits and a binary unit:
// 999 B, 1.00 KiB, 12.0 MiB, 1023 GiB. It is at most eight cells, nine if negative.
func humanBytes(n int64) string {
	if n > -1024 && n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, unit := float64(n)/1024, 0
	for math.Abs(v) >= 1023.5 { // would be written as 1024
		v /= 1024
		unit++
	}
	digits := 0
	switch a := math.Abs(v); {
	case a < 9.995:
		digits = 2
	case a < 99.95:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + " " + "KMGTPE"[unit:unit+1] + "iB"
}

//go:noinline
func progressRight(b *builder, s string, width int) {
	progressSpaces(b, width-len(s))
	b.WriteString(s)
}

//go:noinline
func progressSpaces(b *builder, n int) {
	for range n {
		b.WriteByte(' ')
	}
}

// --- cells ---

// screenWide are the characters that take two cells: East Asian Wide and Fullwidth
// and the emoji of Unicode 16, in ranges that take in some neighbours. A cell too
// many leaves a gap; one too few would wrap the line.
var screenWide = [...][2]rune{
	{0x1100, 0x115f}, {0x231a, 0x231b}, {0x2329, 0x232a}, {0x23e9, 0x23f3}, {0x25fd, 0x25fe}, {0x2614, 0x2615},
	{0x2648, 0x2653}, {0x267f, 0x267f}, {0x2693, 0x2693}, {0x26a1, 0x26a1}, {0x26aa, 0x26ab}, {0x26bd, 0x26be},
	{0x26c4, 0x26c5}, {0x26ce, 0x26ce}, {0x26d4, 0x26d4}, {0x26ea, 0x26ea}, {0x26f2, 0x26f5}, {0x26fa, 0x26fd},
	{0x2705, 0x2705}, {0x270a, 0x270b}, {0x2728, 0x2728}, {0x274c, 0x274e}, {0x2753, 0x2757}, {0x2795, 0x2797},
	{0x27b0, 0x27bf}, {0x2b1b, 0x2b1c}, {0x2b50, 0x2b55}, {0x2e80, 0x303e}, {0x3041, 0xa4cf}, {0xa960, 0xa97f},
	{0xac00, 0xd7a3}, {0xf900, 0xfaff}, {0xfe10, 0xfe19}, {0xfe30, 0xfe6f}, {0xff01, 0xff60}, {0xffe0, 0xffe6},
	{0x16fe0, 0x18dff}, {0x1aff0, 0x1b2ff}, {0x1d300, 0x1d37f}, {0x1f000, 0x1f2ff}, {0x1f300, 0x1faff}, {0x20000, 0x3fffd},
}

// screenCell is how many cells a character takes on a terminal.
func screenCell(r rune) int {
	switch {
	case r < 0x300:
		if r == 0xad { // a soft hyphen is a format character, but terminals show it
			return 1
		}
		if unicode.IsControl(r) {
			return 0
		}
		return 1
	case r >= 0x1160 && r <= 0x11ff: // vowels and finals of a Hangul syllable
		return 0
	case r == 0xfe0f: // makes what is before it an emoji, and on some terminals wider
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	}
	for _, w := range screenWide {
		if r <= w[1] {
			if r >= w[0] {
				return 2
			}
			break
		}
	}
	return 1
}

// screenCells is how many cells s takes.
//
//go:noinline
func screenCells(s string) (n int) {
	for _, r := range s {
		n += screenCell(r)
	}
	return n
}

// screenRows is how many rows a line takes on a terminal of cols columns.
func screenRows(s string, cols int) int {
	rows, at := 1, 0
	for _, r := range s {
		w := screenCell(r)
		if at+w > cols && at > 0 {
			rows++
			at = 0
		}
		at += w
	}
	return rows
}

// screenCut is what of s fits into cells.
//
//go:noinline
func screenCut(s string, cells int) string {
	for i, r := range s {
		if cells -= screenCell(r); cells < 0 {
			return s[:i]
		}
	}
	return s
}

// screenShorten fits s into cells by leaving out its middle: of a path both the
// beginning and the end tell something.
func screenShorten(s string, cells int) string {
	const gap = "..."
	if screenCells(s) <= cells {
		return s
	}
	free := cells - len(gap)
	if free < 2 {
		return screenCut(s, cells)
	}
	head := screenCut(s, free/2)
	free -= screenCells(head)
	tail := len(s)
	for tail > len(head) {
		r, size := utf8.DecodeLastRuneInString(s[:tail])
		if free -= screenCell(r); free < 0 {
			break
		}
		tail -= size
	}
	// A combining mark needs the character it was on.
	for tail < len(s) {
		r, size := utf8.DecodeRuneInString(s[tail:])
		if screenCell(r) > 0 {
			break
		}
		tail += size
	}
	return head + gap + s[tail:]
}

// screenPad writes s and spaces up to cells.
func screenPad(b *builder, s string, cells int) {
	b.WriteString(s)
	progressSpaces(b, cells-screenCells(s))
}
