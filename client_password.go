// client_password.go finds the password that logs in: in a URL, a file, the environment
// or a netrc, else it asks whoever sits at the terminal. It is apart from client_host.go
// because it handles secrets and the terminal, and that file names and addresses; what
// is read here goes to the login of client_box.go and nowhere else, least of all into
// a message.

package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	// maxNetrc bounds what is read of a netrc; real ones have a few lines.
	maxNetrc = 256 << 10

	hostPasswordVariable = "BERTH_PASSWORD"
)

// --- passwords ---

// nextPassword is the password to try, and whether somebody was asked for it. The
// first of these that has one decides: the URL, --password-file, BERTH_PASSWORD, netrc,
// the terminal. Only the terminal is asked again, as often as this is called: no other
// password gets better, and each wrong one counts towards a ban.
func (h *hostSpec) nextPassword() (password string, prompted bool, err error) {
	if !h.given {
		h.given = true
		if password, err = h.givenPassword(); err != nil || password != "" {
			return password, false, err
		}
	}
	password, err = h.ask(shownText(h.user)+"@"+h.name+"'s password: ", false)
	if errors.Is(err, errNoTerminal) {
		why := ""
		if h.certificate != nil && h.tls {
			why = " does not take the key " + shownText(h.keyFile) + ","
		}
		instead := "a key made by berth keygen"
		if h.network == "unix" {
			instead = fmt.Sprintf("have root say: berth user set %s --uid %d", shownText(h.user), os.Getuid())
		}
		return "", true, usageErr("%s%s wants a password of %s and there is no terminal to ask for it; use --password-file FILE, %s, ~/.netrc, or %s",
			h.name, why, shownText(h.user), hostPasswordVariable, instead)
	}
	return password, true, err
}

func (h *hostSpec) givenPassword() (string, error) {
	if h.password != "" {
		return h.password, nil
	}
	if h.passwordFile != "" {
		return h.readPasswordFile()
	}
	if p := os.Getenv(hostPasswordVariable); p != "" {
		return p, nil
	}
	if e := h.netrc(); e != nil && e.password != "" {
		h.warnIfOpen(e.file, e.mode)
		return e.password, nil
	}
	return "", nil
}

// readPasswordFile takes the first line. The file may be a pipe.
func (h *hostSpec) readPasswordFile() (string, error) {
	f, err := os.Open(h.passwordFile)
	if err != nil {
		return "", usageErr("--password-file: %v", err)
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, maxPassword+3)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", usageErr("--password-file: %v", err)
	}
	line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	switch {
	case line == "":
		return "", usageErr("--password-file: the first line of %s is empty; the password has to be there", shownText(h.passwordFile))
	case len(line) > maxPassword:
		return "", usageErr("--password-file: the first line of %s is longer than any password, %d bytes", shownText(h.passwordFile), maxPassword)
	}
	if st, err := f.Stat(); err == nil {
		h.warnIfOpen(h.passwordFile, st.Mode())
	}
	return line, nil
}

// warnIfOpen is about a password that is not secret any more; using it makes that no worse.
func (h *hostSpec) warnIfOpen(file string, mode fs.FileMode) {
	if mode.IsRegular() && mode.Perm()&0o077 != 0 {
		h.notice("others can read the password in " + shownText(file) + "; chmod 600 " + shellWord(file))
	}
}

// --- netrc ---

// A netrcEntry is one machine of a netrc, or its default.
type netrcEntry struct {
	machine         string // lower-case; "" is default
	login, password string
	file            string
	mode            fs.FileMode
}

// netrc is the entry for the box and the user, or nil. Files that cannot be read are
// warned of and passed over, as other programs do it.
func (h *hostSpec) netrc() *netrcEntry {
	file := os.Getenv("NETRC")
	if file == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil
		}
		file = joinPath(home, ".netrc")
	}
	if len(h.machines) == 0 { // unix sockets are no machines
		return nil
	}
	data, err := readConfigBytes(file, maxNetrc)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			h.notice(shownText(file) + ": " + err.Error())
		}
		return nil
	}
	e := findNetrc(parseNetrc(string(data)), h.machines, h.user)
	if e != nil {
		e.file = file
		if st, err := os.Stat(file); err == nil {
			e.mode = st.Mode()
		}
	}
	return e
}

// findNetrc is the first entry for one of the machines, else the default, that has the
// user's name or none; with user "" it may have any.
func findNetrc(entries []netrcEntry, machines []string, user string) *netrcEntry {
	for _, m := range append(slices.Clone(machines), "") {
		for i := range entries {
			e := &entries[i]
			if e.machine == strings.ToLower(m) && (user == "" || e.login == "" || e.login == user) {
				return e
			}
		}
	}
	return nil
}

// parseNetrc reads the format that ftp(1) made and curl widened: words apart by white
// space, "quoted" with \ for what is odd, # for comments where a keyword would be, and
// macdef, which goes to the next empty line. What is not known is skipped.
func parseNetrc(text string) []netrcEntry {
	var all []netrcEntry
	s := netrcScanner{text}
	for {
		word, ok := s.next(true)
		if !ok {
			return all
		}
		var set *string
		switch word {
		case "machine":
			all = append(all, netrcEntry{machine: " "}) // no name: nothing is for it
			set = &all[len(all)-1].machine
		case "default":
			all = append(all, netrcEntry{})
		case "login":
			set = new(string)
			if len(all) > 0 {
				set = &all[len(all)-1].login
			}
		case "password":
			set = new(string)
			if len(all) > 0 {
				set = &all[len(all)-1].password
			}
		case "account":
			set = new(string)
		case "macdef":
			s.skipMacro()
		}
		if set == nil {
			continue
		}
		value, ok := s.next(false)
		if !ok {
			return all
		}
		if word == "machine" {
			value = cmp.Or(strings.ToLower(value), " ")
		}
		*set = value
	}
}

// A netrcScanner has what is left of a netrc.
type netrcScanner struct{ rest string }

// next is the next word; only where a keyword may be does # begin a comment.
func (s *netrcScanner) next(keyword bool) (word string, ok bool) {
	for {
		s.rest = strings.TrimLeft(s.rest, " \t\r\n")
		if !keyword || !beginsWith(s.rest, "#") {
			break
		}
		_, s.rest, _ = cutText(s.rest, "\n")
	}
	if s.rest == "" {
		return "", false
	}
	if s.rest[0] != '"' {
		end := strings.IndexAny(s.rest, " \t\r\n")
		if end < 0 {
			end = len(s.rest)
		}
		word, s.rest = s.rest[:end], s.rest[end:]
		return word, true
	}
	var b builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return b.String(), true
		case c == '\\' && i+1 < len(s.rest):
			i++
			switch c := s.rest[i]; c {
			case 'n':
				b.WriteByte('\n')
			case 'r':
				b.WriteByte('\r')
			case 't':
				b.WriteByte('\t')
			default:
				b.WriteByte(c)
			}
		default:
			b.WriteByte(c)
		}
	}
	s.rest = ""
	return b.String(), true // never closed: better than nothing, and it is the last
}

func (s *netrcScanner) skipMacro() {
	_, s.rest, _ = cutText(s.rest, "\n") // its name
	for s.rest != "" {
		var line string
		line, s.rest, _ = cutText(s.rest, "\n")
		if strings.TrimRight(line, "\r") == "" {
			return
		}
	}
}

// --- the terminal ---

// errNoTerminal is askTerminal's where there is nobody to ask.
var errNoTerminal = errors.New("there is no terminal to ask on")

// askTerminal asks on the terminal that the program was started from, wherever
// standard input and output go, and returns the line that is typed. Lines of prompt
// but the last are shown first. Ctrl-C, Ctrl-D and signals give the terminal back as
// it was and end the verb with the exit code that shells give.
func askTerminal(prompt string, echo bool) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", errNoTerminal
	}
	defer tty.Close()
	if i := strings.LastIndexByte(prompt, '\n'); i >= 0 {
		io.WriteString(tty, prompt[:i+1])
		prompt = prompt[i+1:]
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	done, caught := make(chan struct{}), make(chan syscall.Signal, 1)
	go func() {
		defer close(caught)
		select {
		case s := <-signals:
			caught <- s.(syscall.Signal)
			tty.SetReadDeadline(time.Unix(1, 0)) // the past: whoever reads returns
		case <-done:
		}
	}()
	line, err := readTerminal(tty, prompt, echo)
	close(done)
	signal.Stop(signals)
	if s, ok := <-caught; ok {
		return "", exitWith(128 + int(s))
	}
	if errors.Is(err, io.EOF) {
		// Typed: Ctrl-C or Ctrl-D. What else this program does has to hear of it too.
		unix.Kill(os.Getpid(), unix.SIGINT)
		return "", exitWith(128 + int(syscall.SIGINT))
	}
	return line, err
}

// readTerminal reads one line in raw mode and not with term.ReadPassword, which leaves
// the echo off when Ctrl-C ends the program in the middle.
func readTerminal(tty *os.File, prompt string, echo bool) (line string, err error) {
	raw, err := tty.SyscallConn() // Fd would make it blocking, and then no deadline ends a read
	if err != nil {
		return "", errNoTerminal
	}
	var state *term.State
	raw.Control(func(fd uintptr) { state, err = term.MakeRaw(int(fd)) })
	if err != nil {
		return "", errNoTerminal
	}
	defer raw.Control(func(fd uintptr) { term.Restore(int(fd), state) })
	t := term.NewTerminal(tty, prompt)
	if echo {
		line, err = t.ReadLine()
	} else {
		line, err = t.ReadPassword(prompt)
	}
	switch {
	case errors.Is(err, term.ErrPasteIndicator): // a pasted line is a line
		return line, nil
	case err != nil:
		io.WriteString(tty, "\r\n")
		return "", errorf("read from the terminal: %w", err)
	}
	return line, nil
}
