// client_shell.go is sh: a prompt at which the client's verbs are typed without the
// host, for people who miss ftp(1). It has a place, a box and a directory there, runs
// the verbs of client_verbs.go with it, and has a few words of its own. What a verb
// does it does not know; it is apart from them because it is the only one that goes
// on after a mistake, an interrupt or a lost connection. Words and completion are
// client_shellwords.go's.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	// shellPromptDir is how much of a directory's name the prompt shows, in letters.
	shellPromptDir = 40
	// shellKept is how many messages wait while a verb runs: as many as the box keeps
	// for a slow listener.
	shellKept = chatKept
	// shellHungUp is far more than it takes to read what a box has sent before it closed
	// the connection: that it was idle for too long, say.
	shellHungUp = time.Second
	// maxShellLine bounds a line from another program.
	maxShellLine = 64 << 10
)

// A shellPlace is where a shell is.
type shellPlace struct {
	box     *box
	dir     string         // from the top
	message func(p []byte) // what an M on the box's connection is for; nil: nothing
}

// shellVerbs are the verbs that make sense at the prompt.
var shellVerbs = []string{"cat", "chat", "chmod", "df", "exec", "get", "hash", "ls", "mkdir", "mv", "ping", "put", "rm", "sync", "time", "touch"}

// shellAliases are ftp(1)'s names of verbs, and what they are here.
var shellAliases = map[string][]string{
	"dir": {"ls", "-l"}, "delete": {"rm"}, "mdelete": {"rm"}, "rename": {"mv"}, "mget": {"get"}, "mput": {"put"}, "recv": {"get"}, "send": {"put"},
	"bye": {"quit"}, "exit": {"quit"}, "?": {"help"}, "disconnect": {"close"},
}

// shellIdle are words of ftp(1) that there is nothing to do for.
var shellIdle = []string{"ascii", "bin", "binary", "passive", "prompt"}

// An ownWord is a word of the shell's own.
type ownWord struct {
	name, args, help string
	max              int // arguments; below 0: any number
	run              func(s *shell, words []string) error
}

func ownWords() []ownWord {
	return []ownWord{
		{"cd", "[DIR]", "go to a directory on the box; - is the last one", 1, (*shell).cd},
		{"pwd", "", "tell the directory on the box", 0, func(s *shell, _ []string) error {
			if s.place == nil {
				return errNoPlace
			}
			_, err := fmt.Fprintln(s.inv.stdout, shownText(s.place.dir))
			return err
		}},
		{"lcd", "[DIR]", "go to a directory here", 1, (*shell).lcd},
		{"lpwd", "", "tell the directory here", 0, func(s *shell, _ []string) error {
			dir, err := os.Getwd()
			if err == nil {
				_, err = fmt.Fprintln(s.inv.stdout, shownText(dir))
			}
			return err
		}},
		{"lls", "[FILE ...]", "list files here, with ls", -1, func(s *shell, words []string) error {
			return s.local(append([]string{"/bin/sh", "-c", `exec ls "$@"`, "ls"}, words...))
		}},
		{"open", "[OPTIONS] HOST[:DIR]", "go to another box", -1, (*shell).open},
		{"close", "", "leave the box", 0, (*shell).close},
		{"help", "[WORD]", "tell about a word, or list them", 1, (*shell).help},
		{"quit", "", "leave", 0, nil},
	}
}

// A shell is a running sh.
type shell struct {
	inv    *invocation // that it was called by
	place  *shellPlace // nil: on no box
	last   string      // directory before the last cd
	conn   *remote     // that was used last
	prompt *linePrompt // nil: lines come from no person

	mu       mutex
	busy     bool                    // a word is being done
	own      bool                    // it sees to signals itself
	cancel   context.CancelCauseFunc // ends it; nil: there is nothing to end
	stopped  syscall.Signal          // that ends the shell; 0: none
	messages []string                // that came meanwhile
}

var (
	errNoPlace   = usageErr("on no box; open HOST goes to one")
	errShellQuit = errors.New("quit")
)

func runShell(inv *invocation) error {
	s := &shell{inv: inv}
	f := terminalFile(inv.stdin)
	signals := make(chan os.Signal, 4)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	defer signal.Stop(signals)
	next, stop, err := s.lines(f)
	if err != nil {
		return err
	}
	if f != nil {
		signal.Notify(signals, syscall.SIGWINCH)
	}
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(signals, done, stop) })
	defer watching.Wait()
	defer close(done)

	if _, ok, derr := defaultTarget(); f == nil || len(inv.args) > 0 || ok || derr != nil {
		if err := s.during(nil, func(ctx context.Context) error { return s.enter(ctx, inv) }); err != nil {
			return s.over(err)
		}
	}
	for n := 1; ; n++ {
		if s.prompt != nil {
			s.prompt.line.SetPrompt(s.promptText())
		}
		line, err := next()
		if s.ending() || err == io.EOF || errors.Is(err, errCalledOff) {
			return s.over(nil)
		}
		if errors.Is(err, errInterrupted) {
			continue
		}
		if err == nil {
			err = s.do(line)
		}
		switch {
		case errors.Is(err, errShellQuit):
			return s.over(nil)
		case err == nil:
		case s.prompt == nil:
			if s.ending() || err.Error() == "" {
				return s.over(exitWith(exitCode(err)))
			}
			return &verbError{exitCode(err), fmt.Sprintf("line %d: %v", n, err)}
		case errors.Is(err, errInterrupted):
			fmt.Fprintln(inv.stderr, "interrupted")
		case err.Error() != "":
			fmt.Fprintln(inv.stderr, err)
		}
		s.showWaiting()
	}
}

// lines is where lines come from, and what ends a wait for one.
func (s *shell) lines(f *os.File) (next func() (string, error), stop func(), err error) {
	if f != nil {
		if s.prompt, err = newLinePrompt(f, s.inv.stdout, ""); err != nil {
			return nil, nil, err
		}
		s.prompt.line.History = openHistory(func() bool { return s.prompt.ctrlC })
		complete := &shellCompletion{s: s}
		s.prompt.line.AutoCompleteCallback = complete.key
		return func() (string, error) {
			complete.forget()
			return s.prompt.readLine()
		}, s.prompt.stop, nil
	}
	in, stop := s.inv.stdin, func() {}
	if file, ok := in.(*os.File); ok {
		r, err := newInputReader(file)
		if err != nil {
			return nil, nil, err
		}
		in, stop = r, r.stop
	}
	scan := lineScanner(in, maxShellLine)
	return func() (string, error) {
		if scan.Scan() {
			return scan.Text(), nil
		}
		if err := scan.Err(); err != nil {
			return "", err
		}
		return "", io.EOF
	}, stop, nil
}

// over is how the shell ends.
func (s *shell) over(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped != 0 {
		return exitWith(signalExit + int(s.stopped))
	}
	return err
}

func (s *shell) ending() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped != 0
}

// watch sees to signals: SIGINT ends what runs, and of a person's shell no more than
// that; the others end the shell.
func (s *shell) watch(signals <-chan os.Signal, done <-chan struct{}, stop func()) {
	for {
		var sig os.Signal
		select {
		case <-done:
			return
		case sig = <-signals:
		}
		if sig == syscall.SIGWINCH {
			s.prompt.resize()
			continue
		}
		s.mu.Lock()
		cancel, own := s.cancel, s.own
		if sig != syscall.SIGINT || s.prompt == nil && !own {
			s.stopped = sig.(syscall.Signal)
		}
		stopped := s.stopped != 0
		s.mu.Unlock()
		if cancel != nil && !own {
			cancel(errInterrupted)
		}
		if stopped {
			stop()
		}
	}
}

// during does something on a box, or on the way to one, that SIGINT ends.
func (s *shell) during(v *verb, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	s.mu.Lock()
	s.busy, s.own, s.cancel = true, v != nil && v.ownSignals, cancel
	if s.stopped != 0 {
		cancel(errInterrupted)
	}
	s.mu.Unlock()
	defer func() {
		// ctx is not ended: connections that were made under it go on.
		s.mu.Lock()
		s.busy, s.own, s.cancel = false, false, nil
		s.mu.Unlock()
	}()
	err := do(ctx)
	if ctx.Err() != nil && err != nil {
		return errInterrupted
	}
	return err
}

// connected is the connection to the box, made again if it was lost, which is said.
// It ends with ctx.
func (s *shell) connected(ctx context.Context) (*remote, func() bool, error) {
	if s.place == nil {
		return nil, nil, errNoPlace
	}
	b := s.place.box
	b.ctx = ctx
	if s.conn != nil && s.conn.broken() == nil && hungUp(bareConn(s.conn.conn)) {
		late := time.NewTimer(shellHungUp)
		select {
		case <-s.conn.ended: // as soon as it has been read to its end
		case <-late.C:
		}
		late.Stop()
	}
	c, err := b.main()
	if err != nil {
		return nil, nil, err
	}
	if c != s.conn {
		if s.conn != nil && s.prompt != nil && !errors.Is(s.conn.broken(), errInterrupted) {
			fmt.Fprintf(s.inv.stderr, "%v; connected again\n", s.conn.broken())
		}
		s.conn = c
		c.hear(s.place.message, nil, false)
	}
	return c, context.AfterFunc(ctx, func() { c.fail(errInterrupted) }), nil
}

// bareConn is the connection below TLS.
func bareConn(c net.Conn) net.Conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if b, ok := c.(*batchConn); ok {
		c = b.Conn
	}
	return c
}

// --- lines ---

// do does what a line says.
func (s *shell) do(line string) error {
	line = strings.TrimSpace(line)
	if command, ok := cutPrefix(line, "!"); ok {
		shell := os.Getenv("SHELL")
		if !filepath.IsAbs(shell) {
			shell = "/bin/sh"
		}
		if command = strings.TrimSpace(command); command == "" {
			return s.local([]string{shell})
		}
		return s.local([]string{shell, "-c", command})
	}
	words, err := splitShellLine(line)
	if err != nil || len(words) == 0 {
		return err
	}
	name, typed := words[0].text, words[1:]
	var args []string
	if alias := shellAliases[name]; alias != nil {
		args = alias[1:]
		if name == "mget" || name == "mput" { // all words are names there
			typed = append(slices.Clone(typed), typedWord{text: ".", start: len(line)})
		}
		name = alias[0]
	}
	for _, w := range typed {
		args = append(args, w.text)
	}
	for _, w := range ownWords() {
		if w.name != name {
			continue
		}
		for i := range args {
			args[i] = plainName.Replace(args[i]) // no patterns here
		}
		switch {
		case w.max >= 0 && len(args) > w.max:
			return usageErr("%s %s: unexpected %s", w.name, w.args, configQuote(shownText(args[w.max])))
		case w.run == nil:
			return errShellQuit
		}
		return prefixed(name, w.run(s, args))
	}
	switch {
	case inList(shellVerbs, name):
		return prefixed(name, s.verb(findVerb(name), args, line, typed))
	case inList(shellIdle, name):
		fmt.Fprintf(s.inv.stderr, "%s is not needed here: files go byte for byte, and over one connection\n", name)
		return nil
	case findVerb(name) != nil:
		return usageErr("%s is a command of its own: !berth %s", name, name)
	}
	return usageErr("there is no word %s; help lists them", configQuote(shownText(name)))
}

// prefixed says which word an error is of.
func prefixed(name string, err error) error {
	if err == nil || err.Error() == "" || errors.Is(err, errInterrupted) {
		return err
	}
	return errorf("%s: %w", name, err)
}

// verb runs one of the client's verbs.
func (s *shell) verb(v *verb, args []string, line string, typed []typedWord) error {
	inv := &invocation{verb: v, stdin: strings.NewReader(""), stdout: s.inv.stdout, stderr: s.inv.stderr, within: s.place, pause: s.inv.pause}
	if s.prompt != nil {
		inv.stdin = s.inv.stdin
	}
	if v.command {
		args = append([]string{"."}, args...) // where the host stands otherwise
	}
	err := inv.read(args)
	switch {
	case errors.Is(err, errHelp):
		v.usage(s.inv.stdout)
		return nil
	case err != nil:
		return err
	case s.inv.on("quiet"):
		inv.values["quiet"] = []string{""}
	}
	return s.during(v, func(ctx context.Context) error {
		c, stop, err := s.connected(ctx)
		if err != nil {
			return err
		}
		defer stop()
		inv.ctx = ctx
		if v.command {
			inv.args = nil
			s.commandLine(inv, &c.welcome, line, typed)
		}
		return v.run(inv)
	})
}

// commandLine makes what is behind exec one command line, as it was typed, unless it
// is a named command: there is no shell here that would take anything out of it.
func (s *shell) commandLine(inv *invocation, may *remoteAnswer, line string, typed []typedWord) {
	n := len(inv.tail)
	if n == 0 {
		return
	}
	if may.Shell && (inv.on("shell") || !inList(may.Commands, inv.tail[0])) && n <= len(typed) {
		inv.tail = []string{line[typed[len(typed)-n].start:]}
		return
	}
	for i := range inv.tail {
		inv.tail[i] = plainName.Replace(inv.tail[i])
	}
}

// --- words of its own ---

// enter goes to the box that inv names.
func (s *shell) enter(ctx context.Context, inv *invocation) error {
	inv.ctx = ctx
	p, err := inv.hostPlace(inv.firstArg())
	if err != nil {
		return err
	}
	was, conn := s.place, s.conn
	s.place, s.conn = &shellPlace{box: p.box, dir: "/"}, nil
	if s.prompt != nil {
		s.place.message = s.message
	}
	c, stop, err := s.connected(ctx)
	if err == nil {
		defer stop()
		if p.path != "" {
			err = s.chdir(c, p.path)
		}
	}
	if err != nil {
		s.place, s.conn = was, conn
		return err
	}
	s.last = ""
	if was != nil && was.box != p.box {
		was.box.close()
	}
	return nil
}

func (s *shell) open(words []string) error {
	inv := &invocation{verb: s.inv.verb, stdin: s.inv.stdin, stdout: s.inv.stdout, stderr: s.inv.stderr}
	if err := inv.read(words); err != nil {
		if errors.Is(err, errHelp) {
			return s.help([]string{"open"})
		}
		return err
	}
	if len(inv.args) == 0 {
		return usageErr("which box? open ann@box")
	}
	err := s.during(nil, func(ctx context.Context) error { return s.enter(ctx, inv) })
	s.inv.boxes = append(s.inv.boxes, inv.boxes...) // they are closed with the shell's own
	return err
}

func (s *shell) close([]string) error {
	if s.place == nil {
		return errNoPlace
	}
	s.place.box.close()
	s.place, s.conn, s.last = nil, nil, ""
	return nil
}

func (s *shell) cd(words []string) error {
	if s.place == nil {
		return errNoPlace
	}
	dir := "/"
	if len(words) > 0 {
		dir = words[0]
	}
	if dir == "-" {
		if s.last == "" {
			return usageErr("there was no other directory yet")
		}
		dir = s.last
	}
	return s.during(nil, func(ctx context.Context) error {
		c, stop, err := s.connected(ctx)
		if err != nil {
			return err
		}
		defer stop()
		return s.chdir(c, joinRemote(s.place.dir, fromHome(dir)))
	})
}

// chdir goes to a directory of the box that is there.
func (s *shell) chdir(c *remote, dir string) error {
	a, err := c.do(remoteRequest{Do: "cd", Path: dir})
	if err != nil {
		return errorf("%s: %w", shownText(dir), err)
	}
	if utf8.ValidString(dir) && beginsWith(a.Path, "/") {
		dir = a.Path // without what .. and . are for; names that are not UTF-8 cannot be told
	}
	s.last, s.place.dir = s.place.dir, dir
	return nil
}

func (s *shell) lcd(words []string) error {
	dir := "~"
	if len(words) > 0 {
		dir = words[0]
	}
	if rest, ok := cutPrefix(dir, "~"); ok && (rest == "" || rest[0] == '/') {
		home, err := os.UserHomeDir()
		if err != nil {
			return err
		}
		dir = home + rest
	}
	return os.Chdir(dir)
}

func (s *shell) help(words []string) error {
	if len(words) == 1 {
		name := words[0]
		if alias := shellAliases[name]; alias != nil {
			name = alias[0]
		}
		for _, w := range ownWords() {
			if w.name == name {
				fmt.Fprintf(s.inv.stdout, "%s\n        %s\n", strings.TrimSpace(w.name+" "+w.args), w.help)
				return nil
			}
		}
		if !inList(shellVerbs, name) {
			return usageErr("there is no word %s; help lists them", configQuote(shownText(name)))
		}
		findVerb(name).usage(s.inv.stdout)
		fmt.Fprintln(s.inv.stdout, "\nHere names on the box need no host; in sync, they have a colon in front.")
		return nil
	}
	for _, w := range ownWords() {
		fmt.Fprintf(s.inv.stdout, "  %-36s %s\n", strings.TrimSpace(w.name+" "+w.args), w.help)
	}
	fmt.Fprintf(s.inv.stdout, "  %-36s %s\n", "!COMMAND", "run a command here")
	for _, v := range verbs() {
		if inList(shellVerbs, v.name) {
			args := newReplacer("HOST[:DIR] ", "", "HOST:PATH", "PATH", "[HOST: ...]", "", "[HOST ...]", "", "[HOST]", "", "HOST", "").Replace(v.args)
			fmt.Fprintf(s.inv.stdout, "  %-36s %s\n", strings.TrimSpace(v.name+" "+args), v.help)
		}
	}
	return nil
}

// local runs a program here, with what the shell has for input and outputs.
func (s *shell) local(argv []string) error {
	s.mu.Lock()
	s.busy, s.own = true, true // it hears the terminal's signals itself
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.busy, s.own = false, false
		s.mu.Unlock()
	}()
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	var in *os.File      // nil: /dev/null
	if s.prompt != nil { // otherwise the lines are the shell's own
		in, _ = s.inv.stdin.(*os.File)
	}
	if in == nil {
		if in, err = os.Open(os.DevNull); err != nil {
			return err
		}
		defer in.Close()
	}
	var copied sync.WaitGroup
	defer copied.Wait()
	// outputFile is w for a program: w itself, or a pipe that is copied to it until all
	// of its writers have gone.
	outputFile := func(w io.Writer) (*os.File, func(), error) {
		if f, ok := w.(*os.File); ok {
			return f, func() {}, nil
		}
		pr, pw, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		copied.Go(func() {
			io.Copy(w, pr)
			pr.Close()
		})
		return pw, func() { pw.Close() }, nil
	}
	stdout, closeOut, err := outputFile(s.inv.stdout)
	if err != nil {
		return err
	}
	defer closeOut()
	stderr, closeErr, err := outputFile(s.inv.stderr)
	if err != nil {
		return err
	}
	defer closeErr()
	// Not exec.Cmd, which is 33 KB of a binary that has to fit in small flash.
	p, err := os.StartProcess(program, argv, &os.ProcAttr{
		Env:   slices.DeleteFunc(os.Environ(), func(s string) bool { return beginsWith(s, hostPasswordVariable+"=") }),
		Files: []*os.File{in, stdout, stderr},
	})
	if err != nil {
		return err
	}
	ended, err := p.Wait()
	if err != nil || ended.Success() {
		return err
	}
	if status, ok := ended.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitWith(signalExit + int(status.Signal()))
	}
	return exitWith(ended.ExitCode())
}

// --- what a person sees ---

// promptText is ann@box:/photos> .
func (s *shell) promptText() string {
	if s.place == nil {
		return "berth> "
	}
	dir := []rune(shownText(s.place.dir))
	if len(dir) > shellPromptDir {
		dir = append([]rune("…"), dir[len(dir)-shellPromptDir+1:]...)
	}
	user := s.place.box.spec.user
	if s.conn != nil && s.conn.welcome.User != "" {
		user = s.conn.welcome.User
	}
	return shownText(user) + "@" + s.place.box.spec.name + ":" + string(dir) + "> "
}

// message shows an M above the prompt, or when the verb that runs has ended: it may
// be drawing on the terminal itself.
func (s *shell) message(p []byte) {
	m, ok := parseMessage(p)
	if !ok {
		return
	}
	text := shownMessage(m)
	s.mu.Lock()
	if s.busy {
		if s.messages = append(s.messages, text); len(s.messages) > shellKept {
			s.messages = slices.Delete(s.messages, 0, 1)
		}
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	defer s.prompt.restoreOnPanic()
	s.prompt.show(text)
}

func (s *shell) showWaiting() {
	s.mu.Lock()
	waiting := s.messages
	s.messages = nil
	s.mu.Unlock()
	if len(waiting) > 0 {
		s.prompt.show(strings.Join(waiting, ""))
	}
}
