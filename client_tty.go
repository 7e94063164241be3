// client_tty.go is this side's terminal and standard input, as exec, sh and chat use
// them: raw mode that is given back on every way out, input whose reader can be
// called off, a line to type at, the window's size, and the escapes that end a session
// nothing else ends. It knows no connection. It is a file of its own because three verbs share it,
// and because what is wrong here ruins somebody's terminal.

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// errCalledOff is what a stopped inputReader returns.
var errCalledOff = errors.New("nobody reads any more")

// terminalFile is the terminal that a stream of a verb is, or nil.
func terminalFile(stream any) *os.File {
	if f, ok := stream.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

// terminalSizeOf is the size of the first of files that is a terminal and knows it;
// zeros if none does.
func terminalSizeOf(files ...*os.File) (size terminalSize) {
	for _, f := range files {
		if f == nil {
			continue
		}
		if w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && w.Row > 0 && w.Col > 0 {
			return terminalSize{w.Row, w.Col}
		}
	}
	return size
}

// foldLeast is the least room for text: in less each word would have a line.
const foldLeast = 20

// fold breaks a line between words where it does not fit a terminal, behind indent
// cells; elsewhere it stays whole, for programs.
func (inv *invocation) fold(line string, indent int) string {
	room := 0
	if f := terminalFile(inv.stdout); f != nil {
		room = int(terminalSizeOf(f).Cols) - indent
	}
	return foldText(line, room, indent)
}

func foldText(line string, room, indent int) string {
	if room < foldLeast {
		return line
	}
	var b builder
	at := 0
	for i, word := range splitText(line, " ") {
		n := screenCells(word)
		switch {
		case i == 0:
		case at+1+n > room:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at = 0
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}

// --- raw mode ---

// A rawTerminal is a terminal in raw mode. A nil one is none, and all methods may be
// called from any goroutine.
type rawTerminal struct {
	fd int

	mu   mutex
	was  *term.State // nil: it has been given back
	over bool        // for good
}

// takeTerminal puts f into raw mode; end has to be called.
func takeTerminal(f *os.File) (*rawTerminal, error) {
	t := &rawTerminal{fd: int(f.Fd())}
	return t, t.take()
}

// take goes into raw mode, from whatever the mode is now: somebody who was stopped
// finds the one of his shell.
func (t *rawTerminal) take() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil
	}
	was, err := term.MakeRaw(t.fd)
	if err == nil && t.was == nil {
		t.was = was
	}
	return err
}

// give goes back to the mode that was found, until take.
func (t *rawTerminal) give() { t.back(false) }

// end goes back for good.
func (t *rawTerminal) end() { t.back(true) }

func (t *rawTerminal) back(forGood bool) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = t.over || forGood
	if t.was != nil {
		term.Restore(t.fd, t.was)
		t.was = nil
	}
}

// endOnPanic is deferred by goroutines that run while the terminal is taken: their
// panic ends the program past the deferred calls of the others.
func (t *rawTerminal) endOnPanic() {
	if p := recover(); p != nil {
		t.end()
		panic(p)
	}
}

// --- input ---

// An inputReader reads a descriptor until stop is called, from any goroutine. What
// was not read then is there for the next reader: of a terminal, lines that a person
// has typed for something else.
type inputReader struct {
	file *os.File
	wake int // eventfd
	once sync.Once
}

func newInputReader(f *os.File) (*inputReader, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &inputReader{file: f, wake: wake}, nil
}

// Read waits for input as read(2) would; after stop it returns errCalledOff.
func (r *inputReader) Read(p []byte) (int, error) {
	fd := int(r.file.Fd())
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(r.wake), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("poll", err)
		case fds[1].Revents != 0:
			return 0, errCalledOff
		}
		n, err := unix.Read(fd, p)
		switch {
		case err == unix.EINTR, err == unix.EAGAIN:
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// stop has every Read, also one that waits, return errCalledOff.
func (r *inputReader) stop() {
	r.once.Do(func() { unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
}

// close frees what newInputReader took; no Read may be running.
func (r *inputReader) close() { unix.Close(r.wake) }

// --- lines ---

// A linePrompt reads lines from a person, with editing and history, and shows what
// comes meanwhile above the line that is being typed. Between two lines the terminal
// is as it was.
type linePrompt struct {
	file *os.File
	in   *inputReader
	out  io.Writer
	line *term.Terminal

	raw     *rawTerminal // while a line is read; guarded by mu
	mu      mutex
	pending []byte // read, and not handed on
	escape  bool   // an escape sequence has begun
	ctrlC   bool   // the line that is read was given up
}

// newLinePrompt is for a terminal; close has to be called.
func newLinePrompt(file *os.File, out io.Writer, prompt string) (*linePrompt, error) {
	in, err := newInputReader(file)
	if err != nil {
		return nil, err
	}
	p := &linePrompt{file: file, in: in, out: out}
	p.line = term.NewTerminal(p, prompt)
	return p, nil
}

// readLine is the next line; io.EOF after Ctrl-D, errInterrupted after Ctrl-C, which
// gives up a line and no more, and errCalledOff after stop.
func (p *linePrompt) readLine() (string, error) {
	raw, err := takeTerminal(p.file)
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	p.raw = raw
	p.mu.Unlock()
	defer raw.end()
	p.ctrlC = false
	p.resize()
	line, err := p.line.ReadLine()
	switch {
	case errors.Is(err, term.ErrPasteIndicator): // a pasted line is a line
		err = nil
	case err != nil:
		io.WriteString(p, "\r\n")
	}
	if p.ctrlC && err == nil {
		return "", errInterrupted
	}
	return line, err
}

// Read is for the line editor. Ctrl-C comes to it as the end of a line: by itself it
// would take it for the end of all, over and over.
func (p *linePrompt) Read(b []byte) (int, error) {
	if len(p.pending) == 0 {
		n, err := p.in.Read(b)
		if err != nil {
			return 0, err
		}
		p.pending = append(p.pending, b[:n]...)
	}
	end := bytes.IndexByte(p.pending, 'C'&0x1f)
	if end == 0 {
		p.ctrlC = true
		p.pending = p.pending[1:]
		if p.escape && len(b) > 1 { // or the editor would wait for the end of the sequence
			p.escape = false
			return copy(b, "~\r"), nil
		}
		return copy(b, "\r"), nil
	}
	if end < 0 {
		end = len(p.pending)
	}
	n := copy(b, p.pending[:end])
	p.pending = p.pending[n:]
	for _, c := range b[:n] {
		switch {
		case c == 0x1b:
			p.escape = true
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '~':
			p.escape = false
		}
	}
	return n, nil
}

func (p *linePrompt) Write(b []byte) (int, error) { return p.out.Write(b) }

// show writes text above the line that is being typed, or where the cursor is.
func (p *linePrompt) show(text string) { io.WriteString(p.line, text) }

// resize fits the line to the window.
func (p *linePrompt) resize() {
	if size := terminalSizeOf(p.file); size.Rows > 0 {
		p.line.SetSize(int(size.Cols), int(size.Rows))
	}
}

// restoreOnPanic is deferred by other goroutines that show something.
func (p *linePrompt) restoreOnPanic() {
	if e := recover(); e != nil {
		p.mu.Lock()
		p.raw.end()
		p.mu.Unlock()
		panic(e)
	}
}

// stop ends readLine, from any goroutine.
func (p *linePrompt) stop() { p.in.stop() }

// close is called when no readLine runs.
func (p *linePrompt) close() { p.in.close() }

// --- escapes ---

// An escapeAction is what somebody asks for by an escape, as in ssh(1).
type escapeAction byte

const (
	escapeNone    escapeAction = 0
	escapeEnd     escapeAction = '.'
	escapeHelp    escapeAction = '?'
	escapeSuspend escapeAction = 'Z' & 0x1f
)

const escapeText = "\r\nAt the beginning of a line:\r\n" +
	"  ~.   end the command and the connection\r\n" +
	"  ~^Z  stop berth; fg goes on\r\n" +
	"  ~?   this\r\n" +
	"  ~~   a single ~\r\n"

// An escapeFilter takes escapes out of what is typed: "~" at the beginning of a line,
// and a second letter.
type escapeFilter struct {
	midLine bool
	tilde   bool
}

// feed is as much of p as is to be passed on before the first escape that asks for
// something, and what is behind that one.
func (e *escapeFilter) feed(p []byte) (out []byte, action escapeAction, rest []byte) {
	for i, c := range p {
		if e.tilde {
			e.tilde, e.midLine = false, true
			switch a := escapeAction(c); a {
			case escapeEnd, escapeHelp, escapeSuspend:
				e.midLine = false
				return out, a, p[i+1:]
			case '~':
			default:
				out = append(out, '~')
			}
		} else if c == '~' && !e.midLine {
			e.tilde = true
			continue
		}
		out = append(out, c)
		e.midLine = c != '\r' && c != '\n'
	}
	return out, escapeNone, nil
}
