// What a person, or a script, sees of get, put and sync: bars on a terminal, one
// plain line or one JSON line per finished file elsewhere. The file is its own
// because the terminal is a machine of its own: it may be resized, stopped and
// blocked at any moment, and the engine, which calls in here from many goroutines,
// must neither know nor wait. It knows no protocol and opens nothing.
//
// It is our own code and no library because mpb adds 516 KB to a binary that has
// 770 KB left (measured: 11,808,930 bytes without, 12,325,026 with it), and knows
// no phases, no resumed part and no plain lines.

package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	progressTick    = 100 * time.Millisecond // a redraw; an eye follows no more than ten a second
	progressNumbers = 500 * time.Millisecond // a rate that changes more often cannot be read
	progressMemory  = 5 * time.Second        // a rate forgets two thirds of what was before that
	progressStall   = 5 * time.Second        // without a byte: the same as scp's STALL_TIME
	progressPending = 1 << 20                // bytes that wait for a terminal that does not take them (Ctrl-S)

	progressCols = 80 // of a terminal that does not tell, as a serial console
	progressRows = 24
)

// progressOptions are what newProgress decides by. A writer with an Fd method that
// is a terminal's is treated as that terminal.
type progressOptions struct {
	stdout, stderr io.Writer
	quiet          bool   // nothing but warnings
	json           bool   // JSON lines in place of all else
	verbose        bool   // the digest in plain lines
	dataOnStdout   bool   // standard output carries a file: lines go to stderr
	verb           string // "get", "put" or "sync": the first word of a line
	jobs           int    // how many files may run at once
}

// progressResult is how a file ended. In a sync it may be no file at all: action
// is then "delete", "mkdir" or "move", and nothing was transferred.
type progressResult struct {
	err      error
	note     string // "resumed at 12.0 MiB", "already there", "changed meanwhile, sent anew"
	bytes    int64  // moved over the wire by this process
	size     int64  // of the whole file; -1: not known
	sha256   string
	from, to string
	action   string // in a sync: "put", "get", "move", "delete", "mkdir"
}

// A progress shows what runs. All methods may be called from any goroutine, and
// before start and after stop as well.
type progress struct {
	progressOptions
	lines   io.Writer // of finished files, nil: none
	bars    bool
	tty     bool // stderr is a terminal, whatever is shown there
	started time.Time

	// The world, which tests replace.
	now        func() time.Time
	size       func() (cols, rows int)
	foreground func() bool // a job in the background does not draw into the shell's lines

	quit  chan struct{} // closed by stop
	ended chan struct{} // closed by the ticker's goroutine

	// out is held during a write, which may take for ever. It guards the fields
	// up to mu and is taken before mu.
	out       mutex
	drawn     []string // the lines on the screen; the cursor is at the start of the row below
	drawnCols int
	text      []byte // what is written, kept for its memory

	// told is held while a finished line is written, for which the file that ended
	// waits, as any writer does. It is out if both go to the same place, and else
	// another, so that a terminal does not hold up a log. It guards failed.
	told   *mutex
	failed error // of the first write to lines that went wrong

	// mu is never held during a write, so that a terminal that takes nothing
	// does not stop a transfer. It guards everything below.
	mu       mutex
	live     bool // between start and stop, if there are bars
	stopped  bool
	took     time.Duration // from newProgress to stop
	pending  []byte        // lines that go above the bars with the next redraw
	running  []*progressFile
	files    int64 // expected
	bytes    int64 // expected
	complete bool  // files and bytes are all there is
	finished int64 // files that ended, well or not
	good     int64 // files that ended well
	passed   int64 // bytes of files that ended, moved or not: what the total has behind it
	moved    int64 // bytes of files that ended that this process moved
	rate     progressRate
}

// A progressFile is one running file. Its methods may be called from any goroutine.
type progressFile struct {
	moved atomic.Int64 // bytes this process moved, whatever the offset

	p       *progress
	name    string // as it was given
	shown   string
	size    int64
	started time.Time

	// Guarded by p.mu.
	base      int64 // the offset at the last at
	baseMoved int64 // moved at that time
	kept      int64 // what this process never moved: the smallest offset of any at; -1: none yet
	doing     string
	ended     bool
	rate      progressRate
}

// newProgress decides what is shown and where. Bars are on stderr if that is a
// terminal that can move its cursor. Finished files are told in plain lines on
// stdout unless bars are on the same terminal and tell them; on stderr if stdout
// carries data. With json there are JSON lines instead of both, with quiet nothing.
func newProgress(o progressOptions) *progress {
	p := &progress{progressOptions: o, now: time.Now, foreground: func() bool { return true }}
	fd, tty := progressTerminal(o.stderr)
	_, outTTY := progressTerminal(o.stdout)
	p.tty = tty
	p.size = func() (int, int) {
		cols, rows, err := term.GetSize(fd)
		if err != nil || cols <= 0 || rows <= 0 {
			return progressCols, progressRows
		}
		return cols, rows
	}
	kind := os.Getenv("TERM")
	// Bars between the lines of a file that is printed would spoil both.
	p.bars = tty && !o.quiet && !o.json && kind != "dumb" && kind != "" && !(o.dataOnStdout && outTTY)
	switch {
	case o.quiet:
	case o.dataOnStdout && !p.bars:
		p.lines = o.stderr
	case o.dataOnStdout || p.bars && outTTY: // the terminal has it from the bars
	default:
		p.lines = o.stdout
	}
	p.told = new(mutex)
	if p.lines == p.stderr {
		p.told = &p.out
	}
	if p.bars {
		p.foreground = func() bool {
			group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
			return err != nil || group == unix.Getpgrp() // an error: not our controlling terminal, and no shell's either
		}
	}
	p.quit, p.ended = make(chan struct{}), make(chan struct{})
	p.running = make([]*progressFile, 0, max(o.jobs, 1))
	p.started = p.now()
	return p
}

// progressTerminal tells whether w is a terminal, and its descriptor.
func progressTerminal(w io.Writer) (fd int, is bool) {
	f, ok := w.(interface{ Fd() uintptr })
	if !ok {
		return -1, false
	}
	fd = int(f.Fd())
	return fd, term.IsTerminal(fd)
}

// start begins to draw, if there are bars. The caller ends it with stop.
func (p *progress) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.bars || p.live || p.stopped {
		return
	}
	p.live = true
	go p.draw()
}

// draw redraws until stop.
func (p *progress) draw() {
	defer close(p.ended)
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	resized, back := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	signal.Notify(back, syscall.SIGCONT)
	defer signal.Stop(back)
	var last time.Time
	for {
		select {
		case <-p.quit:
			return
		case <-back:
			p.forget()
			continue
		case <-resized:
			// A window being dragged sends hundreds of them; the tick draws the last.
			if p.now().Sub(last) < progressTick {
				continue
			}
		case <-tick.C:
		}
		select { // a process that was stopped finds a tick and a SIGCONT at once
		case <-back:
			p.forget()
		default:
		}
		last = p.now()
		p.redraw()
	}
}

// forget takes what is drawn as not ours any more: after Ctrl-Z and fg the shell
// has written below it.
func (p *progress) forget() {
	p.out.Lock()
	p.drawn = nil
	p.out.Unlock()
}

// expect adds to what there is to do in all, as a walk finds it.
func (p *progress) expect(files, bytes int64) {
	p.mu.Lock()
	p.files += files
	p.bytes += bytes
	p.mu.Unlock()
}

// known says that all has been expected. Before it the total says "at least" and
// has no percentage.
func (p *progress) known() {
	p.mu.Lock()
	p.complete = true
	p.mu.Unlock()
}

// begin shows a file as running, until its done. size is -1 if nobody knows it.
func (p *progress) begin(name string, size int64) *progressFile {
	f := &progressFile{p: p, name: name, shown: shownText(name), size: size, started: p.now(), kept: -1}
	f.rate.last, f.rate.alive = f.started, f.started
	p.mu.Lock()
	if p.rate.last.IsZero() {
		p.rate.last = f.started
	}
	p.running = append(p.running, f)
	p.mu.Unlock()
	return f
}

// at says that the file goes on from offset: what is before it counts as there,
// but not as moved. Offset 0 after another one starts it anew.
func (f *progressFile) at(offset int64) {
	f.p.mu.Lock()
	f.base, f.baseMoved = offset, f.moved.Load()
	if f.kept < 0 || offset < f.kept {
		f.kept = offset
	}
	f.p.mu.Unlock()
}

// add counts n bytes moved. It takes no lock: every block of a transfer calls it.
func (f *progressFile) add(n int) { f.moved.Add(int64(n)) }

// phase says what the file does instead of moving bytes: "verifying", "waiting",
// "retrying in 4s"; "" when it moves them again.
func (f *progressFile) phase(s string) {
	f.p.mu.Lock()
	f.doing = s
	f.p.mu.Unlock()
}

// done ends the file and tells it. An error is told in JSON only: its text for
// people goes through warn. A second done does nothing.
func (f *progressFile) done(r progressResult) {
	p := f.p
	took := p.now().Sub(f.started)
	p.mu.Lock()
	if f.ended {
		p.mu.Unlock()
		return
	}
	f.ended = true
	i := slices.Index(p.running, f)
	p.running = slices.Delete(p.running, i, i+1)
	moved := max(f.moved.Load(), r.bytes)
	p.moved += moved
	if r.transfers() {
		p.finished++
		if r.err == nil {
			p.good++
		}
		// One that went wrong is behind us as well, or the total never ends.
		switch {
		case f.size >= 0:
			p.passed += f.size
		case r.size >= 0:
			p.passed += r.size
		default:
			p.passed += moved
		}
	}
	if r.size < 0 {
		r.size = max(f.kept, 0) + moved
	}
	kept := max(f.kept, 0)
	p.mu.Unlock()
	if p.bars && r.err == nil {
		cols, _ := p.size()
		p.tell(p.barLine(f.shown, r, took, cols))
	}
	switch {
	case p.lines == nil:
	case p.json:
		p.print(f.jsonLine(r, kept, took))
	case r.err == nil:
		p.print(p.plainLine(f.shown, r, took))
	}
}

// transfers tells whether the result is a file's and no sync's housekeeping.
func (r *progressResult) transfers() bool {
	return r.action == "" || r.action == "put" || r.action == "get"
}

// say shows a line to people: above the bars, or on stderr. The line is whole as
// given; what a server sent in it has been through shownText.
func (p *progress) say(format string, args ...any) {
	if !p.quiet {
		p.tell(fmt.Sprintf(format, args...))
	}
}

// warn is say for what goes wrong, which quiet does not silence.
func (p *progress) warn(format string, args ...any) { p.tell(fmt.Sprintf(format, args...)) }

func (p *progress) tell(line string) {
	p.mu.Lock()
	if p.live {
		p.pending = append(p.pending, line...)
		p.pending = append(p.pending, "\r\n"...)
		over := len(p.pending) > progressPending
		p.mu.Unlock()
		if over {
			p.redraw() // a terminal that takes nothing holds us up only here, as it does scp
		}
		return
	}
	p.mu.Unlock()
	p.out.Lock()
	io.WriteString(p.stderr, line+"\n") // stderr is where its error would have to go
	p.out.Unlock()
}

// print writes a finished line.
func (p *progress) print(line []byte) {
	p.told.Lock()
	defer p.told.Unlock()
	if _, err := p.lines.Write(line); err != nil && p.failed == nil {
		p.failed = err
	}
}

// lost is the error of the first finished line that could not be written, as on a
// full disk: a verb whose output is not whole has not done its work.
func (p *progress) lost() error {
	p.told.Lock()
	defer p.told.Unlock()
	return p.failed
}

// stop leaves the terminal with the finished lines and the cursor at the start of
// the row below them. interrupted says that Ctrl-C ended it, whose "^C" the terminal
// has put where the cursor was. stop may be called often and from anywhere; when it
// returns nothing is drawn any more.
func (p *progress) stop(interrupted bool) {
	p.out.Lock()
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		p.out.Unlock()
		return
	}
	live, pending := p.live, p.pending
	p.stopped, p.live, p.pending = true, false, nil
	p.took = p.now().Sub(p.started)
	p.mu.Unlock()
	close(p.quit)
	switch {
	case live && (interrupted || len(p.drawn) > 0 || len(pending) > 0):
		cols, _ := p.size()
		b := p.rewind(nil, cols)
		b = append(b, "\x1b[J"...)
		p.stderr.Write(append(b, pending...))
		p.drawn = nil
	case !live && interrupted && p.tty:
		io.WriteString(p.stderr, "\n") // ends the row of the ^C
	}
	p.out.Unlock()
	if live {
		<-p.ended
	}
}

// summary is what has been done: files that ended well, bytes this process moved,
// and the time from newProgress to stop, or to now.
func (p *progress) summary() (files, bytes int64, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	took = p.took
	if !p.stopped {
		took = p.now().Sub(p.started)
	}
	return p.good, p.movedNow(), took
}

// movedNow is what this process has moved so far. p.mu is held.
func (p *progress) movedNow() int64 {
	n := p.moved
	for _, f := range p.running {
		n += f.moved.Load()
	}
	return n
}

// --- the screen ---

// redraw writes all that has changed since the last one, in a single write.
func (p *progress) redraw() {
	p.out.Lock()
	defer p.out.Unlock()
	cols, rows := p.size()
	front := p.foreground()
	p.mu.Lock()
	if !p.live {
		p.mu.Unlock()
		return
	}
	pending := p.pending
	p.pending = nil
	var lines []string
	if front {
		lines = p.screen(p.now(), cols, rows)
	}
	p.mu.Unlock()
	if len(pending) == 0 && slices.Equal(lines, p.drawn) && (cols == p.drawnCols || len(lines) == 0) {
		return
	}
	b := p.rewind(p.text[:0], cols)
	if len(pending) > 0 || cols != p.drawnCols {
		// Otherwise row by row, which does not flicker.
		b = append(b, "\x1b[J"...)
	}
	b = append(b, pending...)
	for _, l := range lines {
		b = append(b, l...)
		b = append(b, "\x1b[K\r\n"...)
	}
	if len(lines) < len(p.drawn) {
		b = append(b, "\x1b[J"...)
	}
	p.stderr.Write(b) // a terminal that is gone sends SIGHUP
	p.drawn, p.drawnCols = lines, cols
	if cap(b) <= progressPending {
		p.text = b
	}
}

// rewind moves the cursor to the first row that is ours. A terminal that became
// narrower has wrapped our lines (as VTE, kitty, foot, iTerm2, tmux and Windows do;
// xterm cuts them off, and may then lose finished lines above), so rows are counted
// as they are now. p.out is held.
func (p *progress) rewind(b []byte, cols int) []byte {
	up := 0
	for _, l := range p.drawn {
		up += screenRows(l, cols)
	}
	b = append(b, '\r')
	if up > 0 {
		b = append(b, "\x1b["...)
		b = strconv.AppendInt(b, int64(up), 10)
		b = append(b, 'A')
	}
	return b
}

// screen is the lines to draw: the running files, oldest first, and the total.
// None is as wide as the terminal, for a cursor behind the last column is where
// terminals differ. p.mu is held.
func (p *progress) screen(now time.Time, cols, rows int) []string {
	p.rate.sample(now, p.movedNow())
	for _, f := range p.running {
		f.rate.sample(now, f.moved.Load())
	}
	room := rows - 1 // the cursor has the last
	total := max(p.files, p.finished+int64(len(p.running))) > 1
	if room < 1 || cols < 2 || !total && len(p.running) == 0 {
		return nil
	}
	lay := progressLayoutFor(cols)
	if lay.tiny {
		one := p.totalRow(lay)
		if !total {
			one = p.running[0].row(now)
		}
		if line := lay.line(one); line != "" {
			return []string{line}
		}
		return nil
	}
	if total {
		room--
	}
	shown, more := len(p.running), 0
	if shown > room {
		shown = room
		if room >= 2 { // else the line that says "more" would say nothing else
			shown--
			more = len(p.running) - shown
		}
	}
	lines := make([]string, 0, shown+2)
	for _, f := range p.running[:shown] {
		lines = append(lines, lay.line(f.row(now)))
	}
	if more > 0 {
		lines = append(lines, screenCut("and "+itoa(more)+" more", lay.cells))
	}
	if total {
		lines = append(lines, lay.line(p.totalRow(lay)))
	}
	return lines
}

// row is the file's line. p.mu is held.
func (f *progressFile) row(now time.Time) progressRow {
	r := progressRow{name: f.shown, pos: f.base + f.moved.Load() - f.baseMoved, resumed: f.base, size: f.size, complete: true, doing: f.doing}
	r.rate = f.rate.String()
	switch {
	case r.pos == f.size: // the rest is the other side's
	case f.doing == "" && now.Sub(f.rate.alive) >= progressStall:
		r.rate, r.left = "", "stalled"
	case f.size < 0:
		r.left = progressTime(now.Sub(f.started))
	default:
		r.left = f.rate.left(f.size - r.pos)
	}
	return r
}

// totalRow is the line of all files. p.mu is held.
func (p *progress) totalRow(lay progressLayout) progressRow {
	r := progressRow{pos: p.passed, size: -1, rate: p.rate.String()}
	for _, f := range p.running {
		pos := f.base + f.moved.Load() - f.baseMoved
		if f.size >= 0 {
			pos = min(pos, f.size)
		}
		r.pos += pos
	}
	seen := p.finished + int64(len(p.running))
	all := max(p.files, seen)
	if p.complete {
		r.size = max(p.bytes, 0)
		r.complete = p.finished >= all
		r.left = p.rate.left(r.size - r.pos)
		if r.size == 0 { // empty files only, or one stream of unknown size
			r.size = -1
		}
	}
	done, of, least, plus := strconv.FormatInt(p.finished, 10), strconv.FormatInt(all, 10), "", ""
	if !p.complete {
		least, plus = "at least ", "+"
	}
	for _, name := range []string{"total: " + done + " of " + least + of + " files", done + "/" + of + plus + " files", done + "/" + of + plus} {
		r.name = name
		if len(name) <= lay.room(r.size) {
			break
		}
	}
	return r
}
