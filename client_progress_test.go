// These tests look at the progress as its reader does: the screen tests draw on a
// pseudo-terminal and read it back through a small terminal of their own, which wraps,
// scrolls and reflows as today's do. They tick by hand with a clock of their own; the
// ticker itself runs in synthetic time.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/creack/pty"
)

// --- a terminal ---

// A screenEmulator is a terminal as far as a progress uses one: CR, LF, cursor up,
// erase in line and below, deferred wrapping, scrollback, and reflow on a resize. It
// has widths of its own, not those it checks.
type screenEmulator struct {
	cols, rows int
	all        []screenLine // scrollback and screen
	top        int          // first row of the screen
	row, col   int          // of the cursor; row counts from the start of all
	wrapNext   bool         // the last column is written, the wrap is due
	wraps      int          // lines wrapped by writing
	marks      int          // "\x1b[q" seen
	odd        []string     // what a progress should not have sent
	input      []byte
}

type screenLine struct {
	cells   []screenRune
	wrapped bool // goes on in the next row
}

// A screenRune is a cell; the second cell of a wide character is empty.
type screenRune string

func newScreenEmulator(cols, rows int) *screenEmulator {
	return &screenEmulator{cols: cols, rows: rows, all: make([]screenLine, 1)}
}

func emulatedCell(r rune) int {
	switch {
	case unicode.Is(unicode.Mn, r):
		return 0
	case r >= 0x3040 && r <= 0x9fff, r >= 0xac00 && r <= 0xd7a3, r >= 0x1f600 && r <= 0x1f64f:
		return 2
	}
	return 1
}

func (e *screenEmulator) Write(b []byte) (int, error) {
	e.input = append(e.input, b...)
	for len(e.input) > 0 {
		if e.input[0] == 0x1b {
			end := bytes.IndexFunc(e.input[1:], unicode.IsLetter)
			if end < 0 {
				return len(b), nil
			}
			e.escape(string(e.input[1:end+1]), e.input[end+1])
			e.input = e.input[end+2:]
			continue
		}
		if !utf8.FullRune(e.input) {
			return len(b), nil
		}
		r, n := utf8.DecodeRune(e.input)
		e.input = e.input[n:]
		e.put(r)
	}
	return len(b), nil
}

func (e *screenEmulator) escape(args string, final byte) {
	e.wrapNext = false
	line := &e.all[e.row]
	switch {
	case final == 'q':
		e.marks++
	case final == 'K' && args == "[":
		line.cells, line.wrapped = line.cells[:min(e.col, len(line.cells))], false
	case final == 'J' && args == "[":
		line.cells, line.wrapped = line.cells[:min(e.col, len(line.cells))], false
		e.all = e.all[:e.row+1]
	case final == 'A':
		n := 0
		fmt.Sscanf(args, "[%d", &n)
		e.row = max(e.row-n, e.top)
	default:
		e.odd = append(e.odd, args+string(final))
	}
}

func (e *screenEmulator) down() {
	e.row++
	if e.row == len(e.all) {
		e.all = append(e.all, screenLine{})
	}
	e.top = max(e.top, e.row-e.rows+1)
}

func (e *screenEmulator) put(r rune) {
	switch {
	case r == '\r':
		e.col, e.wrapNext = 0, false
		return
	case r == '\n':
		e.wrapNext = false
		e.down()
		return
	case r < ' ' || r == 0x7f:
		e.odd = append(e.odd, string(r))
		return
	}
	w := emulatedCell(r)
	if w == 0 {
		if line := &e.all[e.row]; e.col > 0 && e.col <= len(line.cells) {
			i := e.col - 1
			for i > 0 && line.cells[i] == "" {
				i--
			}
			line.cells[i] += screenRune(r)
		}
		return
	}
	if e.wrapNext || e.col+w > e.cols {
		e.all[e.row].wrapped = true
		e.wraps++
		e.down()
		e.col, e.wrapNext = 0, false
	}
	line := &e.all[e.row]
	for len(line.cells) < e.col+w {
		line.cells = append(line.cells, " ")
	}
	if line.cells[e.col] == "" { // the second half of a wide one
		line.cells[e.col-1] = " "
	}
	if at := e.col + w; at < len(line.cells) && line.cells[at] == "" {
		line.cells[at] = " "
	}
	line.cells[e.col] = screenRune(r)
	if w == 2 {
		line.cells[e.col+1] = ""
	}
	e.col += w
	if e.col == e.cols {
		e.col, e.wrapNext = e.cols-1, true
	}
}

// resize reflows: lines that were wrapped are joined and wrapped anew, and the cursor
// stays on its character.
func (e *screenEmulator) resize(cols, rows int) {
	var out []screenLine
	row, col := 0, 0
	for i := 0; i < len(e.all); i++ {
		var cells []screenRune
		at := -1
		for {
			if i == e.row {
				at = len(cells) + e.col
			}
			cells = append(cells, e.all[i].cells...)
			if !e.all[i].wrapped || i+1 == len(e.all) {
				break
			}
			i++
		}
		out = append(out, screenLine{})
		for k := 0; k <= len(cells); k++ {
			line := &out[len(out)-1]
			w := 1
			if k+1 < len(cells) && cells[k+1] == "" {
				w = 2
			}
			if k < len(cells) && cells[k] != "" && len(line.cells)+w > cols && len(line.cells) > 0 {
				line.wrapped = true
				out = append(out, screenLine{})
				line = &out[len(out)-1]
			}
			if k == at {
				row, col = len(out)-1, len(line.cells)
			}
			if k < len(cells) {
				line.cells = append(line.cells, cells[k])
			}
		}
	}
	e.all, e.row, e.col, e.wrapNext = out, row, min(col, cols-1), false
	e.cols, e.rows = cols, rows
	e.top = max(0, len(out)-rows)
}

// lines is all that was ever on the screen and is there still, wrapped lines as one.
func (e *screenEmulator) lines() []string {
	var out []string
	var b strings.Builder
	for _, l := range e.all {
		for _, c := range l.cells {
			b.WriteString(string(c))
		}
		if !l.wrapped {
			out = append(out, strings.TrimRight(b.String(), " "))
			b.Reset()
		}
	}
	for len(out) > 0 && out[len(out)-1] == "" {
		out = out[:len(out)-1]
	}
	return out
}

// --- a progress on a pseudo-terminal ---

// A progressScreen is a progress that draws on a terminal that is looked at.
type progressScreen struct {
	*progress
	t             testing.TB
	master, slave *os.File
	clock         time.Time
	writes        atomic.Int64

	mu    sync.Mutex
	moved *sync.Cond // a mark came
	vt    *screenEmulator
}

// Write and Fd make the screen the standard error of its progress.
func (s *progressScreen) Write(b []byte) (int, error) { s.writes.Add(1); return s.slave.Write(b) }
func (s *progressScreen) Fd() uintptr                 { return s.slave.Fd() }

// newProgressScreen has bars that move when the test ticks.
func newProgressScreen(t testing.TB, cols, rows int, o progressOptions) *progressScreen {
	t.Helper()
	s := openProgressScreen(t, cols, rows, o)
	if !s.bars {
		t.Fatal("no bars on a terminal")
	}
	s.live = true
	close(s.ended) // no goroutine to wait for
	return s
}

func openProgressScreen(t testing.TB, cols, rows int, o progressOptions) *progressScreen {
	t.Helper()
	if tt, ok := t.(*testing.T); ok {
		tt.Setenv("TERM", "xterm")
	}
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	s := &progressScreen{t: t, master: master, slave: slave, vt: newScreenEmulator(cols, rows), clock: time.Unix(1e9, 0)}
	s.moved = sync.NewCond(&s.mu)
	if err := pty.Setsize(slave, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 64<<10)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.vt.Write(b[:n])
			s.moved.Broadcast()
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		slave.Close() // the read ends with it
		<-read
		master.Close()
	})
	o.stderr = s
	if o.stdout == nil {
		o.stdout = s
	}
	if o.verb == "" {
		o.verb = "put"
	}
	s.progress = newProgress(o)
	s.progress.now = func() time.Time { return s.clock }
	s.progress.started = s.clock
	return s
}

// tick lets time pass and redraws.
func (s *progressScreen) tick(d time.Duration) {
	s.clock = s.clock.Add(d)
	s.redraw()
}

// sees runs look on the screen once all that was written has arrived there.
func (s *progressScreen) sees(look func(e *screenEmulator)) {
	s.t.Helper()
	s.mu.Lock()
	want := s.vt.marks + 1
	s.mu.Unlock()
	if _, err := s.slave.WriteString("\x1b[q"); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.vt.marks < want {
		s.moved.Wait()
	}
	look(s.vt)
}

// text is the screen, which must hold nothing but what a progress may send.
func (s *progressScreen) text() (text string) {
	s.t.Helper()
	s.sees(func(e *screenEmulator) {
		text = strings.Join(e.lines(), "\n")
		if len(e.odd) > 0 {
			s.t.Errorf("sent %q", e.odd)
		}
	})
	return text
}

// shows compares the screen with lines that begin after a first empty one.
func (s *progressScreen) shows(want string) {
	s.t.Helper()
	want = strings.TrimSuffix(strings.TrimPrefix(want, "\n"), "\n")
	if got := s.text(); got != want {
		s.t.Errorf("the screen shows\n%s\nwant\n%s", got, want)
	}
}

func (s *progressScreen) resize(cols, rows int) {
	s.t.Helper()
	s.sees(func(e *screenEmulator) { e.resize(cols, rows) })
	if err := pty.Setsize(s.slave, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		s.t.Fatal(err)
	}
}

// --- on the screen ---

func TestProgressRunningFiles(t *testing.T) {
	s := newProgressScreen(t, 80, 24, progressOptions{jobs: 4})
	s.expect(3, 250<<20)
	a := s.begin("photos/a.jpg", 100<<20)
	b := s.begin("photos/2024/somewhere/a long way down/film.mkv", 100<<20)
	b.at(50 << 20)
	s.tick(0)
	s.shows(`
photos/a.jpg          [              ]    0%       0 B
photos/2.../film.mkv  [=======       ]   50%  50.0 MiB
total: 0 of at least 3 files                  50.0 MiB
`)
	for range 20 {
		a.add(1 << 20)
		b.add(2 << 20)
		s.tick(progressTick)
	}
	s.shows(`
photos/a.jpg          [##            ]   20%  20.0 MiB  10.0 MiB/s     0:09 ETA
photos/2.../film.mkv  [=======#####  ]   90%  90.0 MiB  20.0 MiB/s     0:01 ETA
total: 0 of at least 3 files                   110 MiB  30.0 MiB/s
`)
	s.known()
	s.tick(progressTick)
	s.shows(`
photos/a.jpg          [##            ]   20%  20.0 MiB  9.42 MiB/s     0:09 ETA
photos/2.../film.mkv  [=======#####  ]   90%  90.0 MiB  18.8 MiB/s     0:01 ETA
total: 0 of 3 files   [######        ]   44%   110 MiB  28.3 MiB/s     0:05 ETA
`)
	a.add(80 << 20)
	a.phase("verifying")
	b.phase("retrying in 4s")
	s.tick(progressTick)
	s.shows(`
photos/a.jpg          [##############]  100%   100 MiB  verifying
photos/2.../film.mkv  [=======#####  ]   90%  90.0 MiB  retrying in 4s
total: 0 of 3 files   [##########    ]   76%   190 MiB  28.3 MiB/s     0:03 ETA
`)
	a.done(progressResult{bytes: 100 << 20, size: 100 << 20})
	b.phase("")
	s.say("connection lost; trying again in %ds", 2)
	s.tick(progressTick)
	s.shows(`
photos/a.jpg                                100%   100 MiB  45.5 MiB/s     0:02
connection lost; trying again in 2s
photos/2.../film.mkv  [=======#####  ]   90%  90.0 MiB  18.8 MiB/s     0:01 ETA
total: 1 of 3 files   [##########    ]   76%   190 MiB  28.3 MiB/s     0:03 ETA
`)
	c := s.begin("empty", 0)
	s.tick(progressStall)
	s.shows(`
photos/a.jpg                                100%   100 MiB  45.5 MiB/s     0:02
connection lost; trying again in 2s
photos/2.../film.mkv  [=======#####  ]   90%  90.0 MiB                  stalled
empty                 [##############]  100%       0 B
total: 1 of 3 files   [##########    ]   76%   190 MiB  8.12 MiB/s     0:08 ETA
`)
	b.add(10 << 20)
	b.done(progressResult{bytes: 50 << 20, size: 100 << 20, note: "resumed at 50.0 MiB"})
	c.done(progressResult{err: errors.New("no room")})
	s.warn("empty: no room")
	s.stop(false)
	s.shows(`
photos/a.jpg                                100%   100 MiB  45.5 MiB/s     0:02
connection lost; trying again in 2s
photos/2...film.mkv  100%   100 MiB  6.85 MiB/s     0:07  (resumed at 50.0 MiB)
empty: no room
`)
	if files, bytes, took := s.summary(); files != 2 || bytes != 150<<20 || took != 7300*time.Millisecond {
		t.Errorf("summary() = %d, %d, %v; want 2, %d, 7.3s", files, bytes, took, 150<<20)
	}
}

// One file has no total, and a stream of unknown size no percentage.
func TestProgressOneStream(t *testing.T) {
	s := newProgressScreen(t, 72, 24, progressOptions{jobs: 1})
	s.expect(1, 0)
	s.known()
	f := s.begin("a name of the standard input that is long", -1)
	for range 30 {
		f.add(300 << 10)
		s.tick(progressTick)
	}
	s.shows(`
a name of the...t that is long        8.79 MiB  2.93 MiB/s         0:03
`)
	f.done(progressResult{bytes: 30 * 300 << 10, size: 30 * 300 << 10})
	s.stop(false)
	s.shows(`
a name of the s...put that is long  100%  8.79 MiB  2.93 MiB/s     0:03
`)
}

// More files than rows: the first ones are shown, the others counted.
func TestProgressLowTerminal(t *testing.T) {
	s := newProgressScreen(t, 60, 6, progressOptions{jobs: 8})
	for i := range 8 {
		s.begin(fmt.Sprintf("file%d", i), 1000).add(100 * i)
	}
	s.known()
	s.expect(8, 8000)
	s.tick(0)
	s.shows(`
file0     [      ]    0%       0 B
file1     [      ]   10%     100 B
file2     [#     ]   20%     200 B
and 5 more
0/8       [##    ]   35%  2.73 KiB
`)
	for rows := 5; rows >= 1; rows-- {
		s.resize(60, rows)
		s.tick(progressTick)
		s.sees(func(e *screenEmulator) {
			if n := len(s.drawn); n != rows-1 || e.row-e.top != n || e.all[e.top].wrapped {
				t.Errorf("%d rows: %d lines are drawn, the cursor is in row %d", rows, n, e.row-e.top)
			}
		})
	}
	s.sees(func(e *screenEmulator) { *e = *newScreenEmulator(60, 4) }) // without what the shrinking has pushed out
	s.resize(60, 4)
	s.forget()
	s.tick(progressTick)
	s.shows(`
file0     [      ]    0%       0 B
and 7 more
0/8       [##    ]   35%  2.73 KiB  4.33 KiB/s     0:02 ETA
`)
}

// A window of any width, and then of any other: no line wraps, and what is on the
// screen is what was drawn last, below what was said.
func TestProgressEveryWidth(t *testing.T) {
	s := newProgressScreen(t, 200, 1000, progressOptions{jobs: 4})
	s.expect(5, 5<<30)
	s.known()
	for i, name := range []string{"photos/夏休み/海と山と川と空と雲/写真.jpg", "a\u0301e\u0301i\u0301o\u0301u\u0301" + strings.Repeat("n\u0303", 40), "x", strings.Repeat("long/", 30) + "😀😀😀😀😀😀😀😀.png"} {
		f := s.begin(name, 1<<30)
		f.at(int64(i) << 26)
		f.add(i<<27 + 12345)
	}
	s.say("said before")
	widths := []int{}
	for w := 1; w <= 200; w++ {
		widths = append(widths, 201-w, 1+w*77%200) // in steps, and in leaps
	}
	for i, w := range widths {
		if i%7 == 0 {
			s.running[0].phase("verifying")
		} else if i%7 == 3 {
			s.running[0].phase("")
		}
		s.resize(w, 1000)
		s.running[1].add(1 << 10)
		s.sees(func(e *screenEmulator) { e.wraps = 0 })
		s.tick(progressTick)
		want := append([]string{"said before"}, s.drawn...)
		s.sees(func(e *screenEmulator) {
			if got := e.lines(); !slices.Equal(got, want) || e.wraps > 0 || e.col != 0 {
				t.Errorf("%d columns: %d wraps, the cursor is in column %d; the screen shows\n%s\nwant\n%s", w, e.wraps, e.col, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
		if t.Failed() {
			return
		}
	}
	s.resize(30, 1000) // and a last one that is not seen before the end
	s.stop(false)
	s.shows("said before")
}

func TestProgressNarrow(t *testing.T) {
	s := newProgressScreen(t, 200, 24, progressOptions{jobs: 4})
	s.expect(2, 2<<20)
	s.known()
	a, b := s.begin("photos/夏休み/写真.jpg", 1<<20), s.begin("b.txt", 1<<20)
	b.phase("verifying")
	for range 10 {
		a.add(50 << 10)
		s.tick(progressTick)
	}
	for _, c := range []struct {
		cols int
		want string
	}{
		{120, `
photos/夏休み/写真.jpg                      [###############                 ]   48%   500 KiB   500 KiB/s     0:02 ETA
b.txt                                       [                                ]    0%       0 B  verifying
total: 0 of 2 files                         [#######                         ]   24%   500 KiB   500 KiB/s     0:04 ETA
`},
		{60, `
ph...jpg  [##    ]   48%   500 KiB   500 KiB/s     0:02 ETA
b.txt     [      ]    0%       0 B  verifying
0/2       [#     ]   24%   500 KiB   500 KiB/s     0:04 ETA
`},
		{59, `
photos...真.jpg   [####      ]   48%   500 KiB   500 KiB/s
b.txt             [          ]    0%       0 B  verifying
0/2 files         [##        ]   24%   500 KiB   500 KiB/s
`},
		{47, `
photos...真.jpg   [####      ]   48%   500 KiB
b.txt                                verifying
0/2 files         [##        ]   24%   500 KiB
`},
		{35, `
photos/...写真.jpg   48%   500 KiB
b.txt                    verifying
0/2 files            24%   500 KiB
`},
		{29, `
photos/夏休み/写真.jpg   48%
b.txt              verifying
total: 0 of 2 files      24%
`},
		{20, `
photo....jpg    48%
b.txt     verifying
0/2 files       24%
`},
		{19, `
24%
`},
		{4, `
24%
`},
		{2, ""},
		{1, ""},
	} {
		s.resize(c.cols, 24)
		s.tick(0)
		s.shows(c.want)
	}
}

// Ctrl-C puts "^C" where the cursor is; neither it nor a bar stays.
func TestProgressInterrupted(t *testing.T) {
	s := newProgressScreen(t, 80, 24, progressOptions{})
	io.WriteString(s.slave, "$ berth put a b\r\n")
	f := s.begin("a", 1000)
	s.begin("b", 1000).add(500)
	s.tick(0)
	f.done(progressResult{bytes: 1000, size: 1000})
	s.slave.WriteString("^C")
	s.stop(true)
	s.stop(false)
	s.begin("late", 5).done(progressResult{bytes: 5, size: 5})
	s.warn("berth put: interrupted; berth put -c goes on")
	s.shows(`
$ berth put a b
a                                           100%    1000 B           -     0:00
late                                        100%       5 B           -     0:00
berth put: interrupted; berth put -c goes on
`)
}

// Where no bars are, the row of the ^C is ended.
func TestProgressInterruptedDumb(t *testing.T) {
	s := openProgressScreen(t, 80, 24, progressOptions{})
	t.Setenv("TERM", "dumb")
	s.progress = newProgress(s.progressOptions)
	s.start()
	s.begin("a", 4).done(progressResult{bytes: 4, size: 4})
	s.slave.WriteString("^C")
	s.stop(true)
	s.warn("berth put: interrupted")
	text := s.text()
	if lines := strings.Split(text, "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "put a 4 bytes 0.") || lines[1] != "^C" || lines[2] != "berth put: interrupted" {
		t.Errorf("the screen shows\n%s", text)
	}
}

// After Ctrl-Z the rows above the cursor are the shell's, and so they stay.
func TestProgressStoppedByShell(t *testing.T) {
	s := newProgressScreen(t, 60, 24, progressOptions{})
	front := true
	s.foreground = func() bool { return front }
	f := s.begin("a", 1000)
	s.tick(0)
	s.slave.WriteString("^Z\r\n[1]+ Stopped\r\n$ bg\r\n")
	s.forget() // SIGCONT
	front = false
	f.add(500)
	s.say("said from the background")
	s.tick(progressTick)
	s.slave.WriteString("$ fg\r\n")
	s.forget()
	front = true
	s.tick(progressTick)
	s.shows(`
a         [      ]    0%       0 B
^Z
[1]+ Stopped
$ bg
said from the background
$ fg
a         [###   ]   50%     500 B
`)
}

// Two thousand files are a write for every tick, and all of them are told.
func TestProgressManyFiles(t *testing.T) {
	s := newProgressScreen(t, 80, 24, progressOptions{jobs: 4})
	s.expect(2000, 2000*4096)
	s.known()
	for i := range 2000 {
		f := s.begin(fmt.Sprintf("f%04d", i), 4096)
		f.add(4096)
		f.done(progressResult{bytes: 4096, size: 4096})
		if i%100 == 0 {
			s.tick(progressTick)
		}
	}
	s.stop(false)
	if n := s.writes.Load(); n > 21 {
		t.Errorf("%d writes to the terminal; want at most 21", n)
	}
	lines := strings.Split(s.text(), "\n")
	if len(lines) != 2000 {
		t.Fatalf("%d lines; want 2000", len(lines))
	}
	for i, l := range lines {
		if !strings.HasPrefix(l, fmt.Sprintf("f%04d ", i)) || !strings.Contains(l, "100%  4.00 KiB") {
			t.Fatalf("line %d is %q", i, l)
		}
	}
}

func TestProgressWritesOnlyChanges(t *testing.T) {
	s := newProgressScreen(t, 80, 24, progressOptions{})
	f := s.begin("a", 1<<30)
	f.phase("waiting")
	s.tick(0)
	for range 100 {
		s.tick(progressTick)
	}
	if n := s.writes.Load(); n != 1 {
		t.Errorf("%d writes for a line that does not change; want 1", n)
	}
}

// start draws on its own, and follows a resize.
func TestProgressTicker(t *testing.T) {
	s := openProgressScreen(t, 80, 24, progressOptions{})
	s.begin("a", 1000).add(500)
	s.start()
	s.waitFor("[#######       ]   50%")
	s.resize(40, 24)
	s.waitFor("[###    ]   50%")
	s.stop(false)
	s.shows("")
}

func (s *progressScreen) waitFor(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !strings.Contains(strings.Join(s.vt.lines(), "\n"), text) {
		s.moved.Wait()
	}
}

// --- not on a screen ---

// newForcedProgress draws bars into something that is no terminal.
func newForcedProgress(stderr io.Writer) *progress {
	p := newProgress(progressOptions{stdout: io.Discard, stderr: stderr, verb: "put", jobs: 4})
	p.bars = true
	return p
}

// A terminal that was stopped with Ctrl-S stops no transfer.
func TestProgressBlockedTerminal(t *testing.T) {
	r, w := io.Pipe()
	p := newForcedProgress(w)
	p.live = true
	close(p.ended)
	f := p.begin("a", 1000)
	drawn := make(chan struct{})
	go func() {
		defer close(drawn)
		p.redraw()
	}()
	one := make([]byte, 1)
	if _, err := r.Read(one); err != nil { // it is within its write now
		t.Fatal(err)
	}
	f.at(0)
	f.add(1000)
	f.phase("verifying")
	p.begin("b", 5).done(progressResult{size: 5})
	f.done(progressResult{size: 1000, bytes: 1000})
	p.warn("warned")
	p.expect(1, 1)
	p.known()
	p.summary()
	go func() {
		<-drawn
		p.stop(false)
		w.Close()
	}()
	rest, _ := io.ReadAll(r)
	if got := string(rest); !strings.Contains(got, "b ") || !strings.HasSuffix(got, "warned\r\n") {
		t.Errorf("the terminal got %q in the end", got)
	}
}

// A countingWriter is a terminal of which only the writes are of interest.
type countingWriter struct {
	mu sync.Mutex
	n  int
	b  bytes.Buffer
}

func (w *countingWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	return w.b.Write(b)
}

func (w *countingWriter) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

func TestProgressTenRedrawsASecond(t *testing.T) {
	// The first Notify starts a goroutine of os/signal that never ends, which may
	// not be one of the bubble's.
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGWINCH)
	signal.Stop(sig)
	synctest.Test(t, func(t *testing.T) {
		w := &countingWriter{}
		p := newForcedProgress(w)
		p.start()
		f := p.begin("a", 1<<30)
		for range 3000 {
			f.add(1 << 10)
			time.Sleep(time.Millisecond)
		}
		if n := w.count(); n < 28 || n > 30 {
			t.Errorf("%d writes in three seconds of changes; want 30", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		n := w.count()
		time.Sleep(time.Minute)
		synctest.Wait()
		if m := w.count(); m != n {
			t.Errorf("%d writes in a minute without a change; want 0", m-n)
		}
		p.stop(false)
		p.stop(true)
		f.done(progressResult{bytes: 3 << 20, size: 1 << 30})
	})
}

// Everything at once, for the race detector.
func TestProgressConcurrent(t *testing.T) {
	w, out := &countingWriter{}, &countingWriter{}
	p := newForcedProgress(w)
	p.lines = out
	p.start()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 200 {
				p.expect(1, 1000)
				f := p.begin(fmt.Sprintf("%d-%d", i, k), 1000)
				f.at(int64(k))
				f.add(1000 - k)
				f.phase("verifying")
				p.say("%d", k)
				if k%10 == 0 {
					p.redraw()
				}
				f.done(progressResult{bytes: int64(1000 - k), size: 1000})
				f.done(progressResult{err: errors.New("twice")})
				if k == 150 {
					p.stop(i%2 == 0)
				}
			}
		})
	}
	wg.Wait()
	if files, _, _ := p.summary(); files != 1600 || bytes.Count(out.b.Bytes(), []byte("\n")) != 1600 {
		t.Errorf("%d files, %d lines; want 1600 of both", files, bytes.Count(out.b.Bytes(), []byte("\n")))
	}
}

// Every kind of finished line, plain and JSON.
func TestProgressFinishedLines(t *testing.T) {
	results := []struct {
		name string
		size int64
		at   int64
		r    progressResult
	}{
		{"photos/a.jpg", 1234567, 0, progressResult{bytes: 1234567, size: 1234567, sha256: "9f86d0", from: "photos/a.jpg", to: "box:a.jpg"}},
		{"photos/a b.jpg", 20 << 20, 12 << 20, progressResult{bytes: 8 << 20, size: 20 << 20, note: "resumed at 12.0 MiB", from: "photos/a b.jpg", to: "box:a b.jpg"}},
		{"-", -1, 0, progressResult{bytes: 7, size: -1, from: "-", to: "box:<t&>"}},
		{"there", 5, 0, progressResult{size: 5, note: "already there"}},
		{"b\x1b[2J\u202e\u009b\xff", 5, 0, progressResult{bytes: 5, size: 5}},
		{"full", 5, 0, progressResult{bytes: 2, size: 5, from: "full", err: errors.New("box:full: no room")}},
		{"new", 0, 0, progressResult{action: "mkdir", to: "box:new"}},
		{"old", 0, 0, progressResult{action: "delete", to: "box:old"}},
		{"big", 0, 0, progressResult{action: "move", from: "big", to: "bigger"}},
		{"x", 1, 0, progressResult{action: "put", bytes: 1, size: 1, from: "x", to: "box:x"}},
	}
	for _, c := range []struct {
		name             string
		o                progressOptions
		wantOut, wantErr string
	}{
		{"plain", progressOptions{}, `
put photos/a.jpg 1234567 bytes 0.42s
put photos/a b.jpg 20971520 bytes 0.42s (resumed at 12.0 MiB)
put - 7 bytes 0.42s
put there 5 bytes 0.42s (already there)
put b\x1b[2J\u202e\u009b\xff 5 bytes 0.42s
mkdir new
delete old
move big -> bigger
put x 1 bytes 0.42s
`, "said\nwarned\n"},
		{"verbose", progressOptions{verbose: true}, `
put photos/a.jpg 1234567 bytes 0.42s sha256 9f86d0
put photos/a b.jpg 20971520 bytes 0.42s (resumed at 12.0 MiB)
put - 7 bytes 0.42s
put there 5 bytes 0.42s (already there)
put b\x1b[2J\u202e\u009b\xff 5 bytes 0.42s
mkdir new
delete old
move big -> bigger
put x 1 bytes 0.42s
`, "said\nwarned\n"},
		{"data on stdout", progressOptions{dataOnStdout: true}, "", `
put photos/a.jpg 1234567 bytes 0.42s
put photos/a b.jpg 20971520 bytes 0.42s (resumed at 12.0 MiB)
put - 7 bytes 0.42s
put there 5 bytes 0.42s (already there)
put b\x1b[2J\u202e\u009b\xff 5 bytes 0.42s
mkdir new
delete old
move big -> bigger
put x 1 bytes 0.42s
said
warned
`},
		{"json", progressOptions{json: true}, `
{"verb":"put","from":"photos/a.jpg","to":"box:a.jpg","size":1234567,"bytes":1234567,"seconds":0.42,"sha256":"9f86d0","resumed":0}
{"verb":"put","from":"photos/a b.jpg","to":"box:a b.jpg","size":20971520,"bytes":8388608,"seconds":0.42,"resumed":12582912,"note":"resumed at 12.0 MiB"}
{"verb":"put","from":"-","to":"box:<t&>","size":7,"bytes":7,"seconds":0.42,"resumed":0}
{"verb":"put","from":"there","to":"","size":5,"bytes":0,"seconds":0.42,"resumed":0,"note":"already there"}
{"verb":"put","from":"b\u001b[2J\u202e\u009b\ufffd","to":"","size":5,"bytes":5,"seconds":0.42,"resumed":0}
{"verb":"put","from":"full","to":"","size":5,"bytes":2,"seconds":0.42,"resumed":0,"error":"box:full: no room"}
{"verb":"put","action":"mkdir","from":"","to":"box:new","size":0,"bytes":0,"seconds":0.42,"resumed":0}
{"verb":"put","action":"delete","from":"","to":"box:old","size":0,"bytes":0,"seconds":0.42,"resumed":0}
{"verb":"put","action":"move","from":"big","to":"bigger","size":0,"bytes":0,"seconds":0.42,"resumed":0}
{"verb":"put","action":"put","from":"x","to":"box:x","size":1,"bytes":1,"seconds":0.42,"resumed":0}
`, "said\nwarned\n"},
		{"quiet", progressOptions{quiet: true}, "", "warned\n"},
		{"quiet json", progressOptions{quiet: true, json: true}, "", "warned\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, err strings.Builder
			c.o.stdout, c.o.stderr, c.o.verb = &out, &err, "put"
			p := newProgress(c.o)
			clock := time.Unix(1e9, 0)
			p.now = func() time.Time { return clock }
			p.start()
			for _, r := range results {
				f := p.begin(r.name, r.size)
				f.at(r.at)
				clock = clock.Add(420 * time.Millisecond)
				f.done(r.r)
			}
			p.say("said")
			p.warn("warned")
			p.stop(true)
			if got := out.String(); got != strings.TrimPrefix(c.wantOut, "\n") {
				t.Errorf("stdout is\n%swant\n%s", got, c.wantOut)
			}
			if got := err.String(); got != strings.TrimPrefix(c.wantErr, "\n") {
				t.Errorf("stderr is\n%swant\n%s", got, c.wantErr)
			}
		})
	}
}

// Where bars and lines go for each kind of standard output and error.
func TestProgressWhere(t *testing.T) {
	s := openProgressScreen(t, 80, 24, progressOptions{})
	var pipe bytes.Buffer
	for _, c := range []struct {
		name      string
		term      string
		out, err  io.Writer
		o         progressOptions
		wantBars  bool
		wantLines io.Writer
	}{
		{"terminal", "xterm", s, s, progressOptions{}, true, nil},
		{"output into a file", "xterm", &pipe, s, progressOptions{}, true, &pipe},
		{"errors into a file", "xterm", s, &pipe, progressOptions{}, false, s},
		{"all into a file", "xterm", &pipe, &pipe, progressOptions{}, false, &pipe},
		{"data into a file", "xterm", &pipe, s, progressOptions{dataOnStdout: true}, true, nil},
		{"data on the terminal", "xterm", s, s, progressOptions{dataOnStdout: true}, false, s},
		{"dumb", "dumb", s, s, progressOptions{}, false, s},
		{"no TERM", "", s, s, progressOptions{}, false, s},
		{"quiet", "xterm", s, s, progressOptions{quiet: true}, false, nil},
		{"json", "xterm", s, s, progressOptions{json: true}, false, s},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("TERM", c.term)
			c.o.stdout, c.o.stderr = c.out, c.err
			if p := newProgress(c.o); p.bars != c.wantBars || p.lines != c.wantLines {
				t.Errorf("bars %v, lines to %T; want %v, %T", p.bars, p.lines, c.wantBars, c.wantLines)
			}
		})
	}
}

func TestProgressLostOutput(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	p := newProgress(progressOptions{stdout: full, stderr: io.Discard, verb: "put"})
	if err := p.lost(); err != nil {
		t.Errorf("lost() = %v before anything was written", err)
	}
	p.begin("a", 1).done(progressResult{bytes: 1, size: 1})
	if err := p.lost(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("lost() = %v; want %v", err, syscall.ENOSPC)
	}
}

// --- numbers and cells ---

func TestHumanBytes(t *testing.T) {
	for _, c := range []struct {
		n    int64
		want string
	}{
		{0, "0 B"}, {999, "999 B"}, {1023, "1023 B"}, {1024, "1.00 KiB"}, {1536, "1.50 KiB"}, {10234, "9.99 KiB"},
		{10235, "10.0 KiB"}, {12 << 20, "12.0 MiB"}, {102348, "99.9 KiB"}, {102349, "100 KiB"}, {1023<<10 + 511, "1023 KiB"}, {1023<<10 + 512, "1.00 MiB"},
		{1<<20 - 1, "1.00 MiB"}, {1 << 30, "1.00 GiB"}, {1 << 40, "1.00 TiB"}, {1 << 50, "1.00 PiB"}, {math.MaxInt64, "8.00 EiB"},
		{-1, "-1 B"}, {-1024, "-1.00 KiB"}, {math.MinInt64, "-8.00 EiB"},
	} {
		if got := humanBytes(c.n); got != c.want {
			t.Errorf("humanBytes(%d) = %q; want %q", c.n, got, c.want)
		}
	}
}

func TestProgressTime(t *testing.T) {
	for _, c := range []struct {
		d    time.Duration
		want string
	}{
		{-time.Second, "0:00"}, {0, "0:00"}, {59999 * time.Millisecond, "0:59"}, {3599 * time.Second, "59:59"}, {3600 * time.Second, "1:00:00"},
		{10*time.Hour - 1, "9:59:59"}, {10 * time.Hour, "10h00m"}, {24*time.Hour - 1, "23h59m"}, {100 * time.Hour, "4d04h"}, {99*24*time.Hour + 23*time.Hour, "99d23h"},
	} {
		if got := progressTime(c.d); got != c.want {
			t.Errorf("progressTime(%v) = %q; want %q", c.d, got, c.want)
		}
	}
}

// A rate follows a change within seconds, and is right from the start.
func TestProgressRate(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := progressRate{last: now}
	var moved int64
	for i, c := range []struct {
		perTick  int64
		ticks    int
		low, top float64 // of the rate shown then, in bytes a second
	}{
		{1000, 4, 0, 0}, // too early to say
		{1000, 2, 9999, 10001},
		{1000, 100, 9999, 10001},
		{2000, 50, 16000, 17000}, // after as long as it remembers: 1-1/e of the way
		{2000, 200, 19900, 20001},
		{0, 300, 0, 60},
		{0, 300, 0, 1},
	} {
		for range c.ticks {
			moved += c.perTick
			now = now.Add(progressTick)
			r.sample(now, moved)
			r.sample(now, moved) // no time passed
		}
		if r.shown < c.low || r.shown > c.top {
			t.Errorf("step %d: the rate is %.1f; want %.0f to %.0f", i, r.shown, c.low, c.top)
		}
	}
	if got := r.String() + r.left(1000); got != "" {
		t.Errorf("no rate is shown as %q; want nothing", got)
	}
	r.shown = 1000
	for _, c := range []struct {
		n    int64
		want string
	}{{-1, ""}, {0, "0:00 ETA"}, {1, "0:01 ETA"}, {61000, "1:01 ETA"}, {35999000, "9:59:59 ETA"}, {math.MaxInt64, ""}} {
		if got := r.left(c.n); got != c.want {
			t.Errorf("left(%d) = %q; want %q", c.n, got, c.want)
		}
	}
}

func TestScreenShorten(t *testing.T) {
	for _, c := range []struct {
		s     string
		cells int
		want  string
	}{
		{"photos/a.jpg", 12, "photos/a.jpg"},
		{"photos/a.jpg", 11, "phot....jpg"},
		{"photos/a.jpg", 5, "p...g"},
		{"photos/a.jpg", 4, "phot"},
		{"photos/a.jpg", 0, ""},
		{"夏休みの写真.jpg", 16, "夏休みの写真.jpg"},
		{"夏休みの写真.jpg", 15, "夏休み...真.jpg"},
		{"夏休みの写真.jpg", 10, "夏....jpg"},
		{"夏", 1, ""},
		{"e\u0301e\u0301e\u0301e\u0301e\u0301e\u0301e\u0301", 6, "e\u0301...e\u0301e\u0301"},
		{strings.Repeat("\u0301", 50), 0, strings.Repeat("\u0301", 50)},
	} {
		if got := screenShorten(c.s, c.cells); got != c.want || screenCells(got) > c.cells {
			t.Errorf("screenShorten(%q, %d) = %q of %d cells; want %q", c.s, c.cells, got, screenCells(got), c.want)
		}
	}
}

func TestScreenCells(t *testing.T) {
	for s, want := range map[string]int{"": 0, "abc": 3, "é": 1, "e\u0301": 1, "夏": 2, "한글": 4, "\u1112\u1161\u11ab": 2, "😀": 2, "ｆ": 2, "ｶ": 1, "\u200b": 0, "→": 1, "\t": 0} {
		if got := screenCells(s); got != want {
			t.Errorf("screenCells(%q) = %d; want %d", s, got, want)
		}
	}
	for i := 1; i < len(screenWide); i++ {
		if screenWide[i][0] <= screenWide[i-1][1] || screenWide[i][0] > screenWide[i][1] {
			t.Errorf("screenWide is out of order at %x", screenWide[i][0])
		}
	}
}

// No line of any width is wider than its terminal, whatever its numbers are.
func FuzzProgressLine(f *testing.F) {
	f.Add("photos/夏休み.jpg", "verifying", int64(5), int64(3), int64(10), 80)
	f.Add("", "", int64(0), int64(0), int64(0), 1)
	f.Add("\u0301\u0301", "", int64(1<<62), int64(-1), int64(-1), 60)
	f.Fuzz(func(t *testing.T, name, doing string, pos, resumed, size int64, cols int) {
		if cols < 1 || cols > 1000 {
			return
		}
		r := progressRow{name: shownText(name), doing: doing, pos: max(pos, 0), resumed: max(resumed, 0), size: max(size, -1), complete: true, rate: "1023 MiB/s", left: "9:59:59 ETA"}
		if got := progressLayoutFor(cols).line(r); screenCells(got) > cols-1 || strings.HasSuffix(got, " ") {
			t.Errorf("%d columns: %q has %d cells", cols, got, screenCells(got))
		}
	})
}

func BenchmarkProgressAdd(b *testing.B) {
	f := newProgress(progressOptions{stdout: io.Discard, stderr: io.Discard}).begin("a", 1)
	for b.Loop() {
		f.add(1)
	}
}

// A tick with sixteen running files.
func BenchmarkProgressRedraw(b *testing.B) {
	p := newForcedProgress(io.Discard)
	p.live = true
	clock := time.Unix(1e9, 0)
	p.now = func() time.Time { return clock }
	for i := range 16 {
		p.begin(fmt.Sprintf("photos/2024/somewhere/a long way down/film%d.mkv", i), 1<<40)
	}
	for b.Loop() {
		clock = clock.Add(progressTick)
		for _, f := range p.running {
			f.add(1 << 20)
		}
		p.redraw()
	}
}
