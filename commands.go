// commands.go decides which program a user may run, with what, and tells him how
// it ended: exec and SITE EXEC. It stands between requests and verbs, which ask, and
// exec.go, which starts programs and knows no user; a file of its own because here a
// client's words become arguments.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxArgument  = 4096     // bytes of one value: PATH_MAX
	maxArguments = 64 << 10 // of all values, and of a command line
	// stdinAhead is how much of stdin is held for a command that does not read it,
	// so that what a client sends behind it, as X, is seen.
	stdinAhead = 256 << 10
	stdinPiece = 32 << 10 // read at once, for the runner
	// siteOutput bounds what SITE EXEC puts into one reply: FTP clients keep all of it.
	siteOutput = 64 << 10
	// runPath is where a user's commands look for programs.
	runPath = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
	// shellName stands for a command line in metrics and logs.
	shellName = "shell"
	// commandRecount is how soon after a command a home is counted anew: at once to
	// people, and once for a burst of commands.
	commandRecount = time.Second
	defaultShell   = "/bin/sh"
	defaultRows    = 24
	defaultCols    = 80
)

// A refusal is why a command is not run.
type refusal struct {
	code   int
	reason string
	text   string
}

func (r *refusal) Error() string { return r.text }

//go:noinline
func refuse(code int, reason, format string, args ...any) *refusal {
	return &refusal{code, reason, fmt.Sprintf(format, args...)}
}

// --- what may be run ---

// argv fills a command's placeholders: with a list in the order in which they
// first appear, or by name.
func (c commandConfig) argv(name string, list []string, named map[string]string) ([]string, *refusal) {
	var holes []string
	for _, word := range c.Run[1:] {
		for _, m := range commandPlaceholder.FindAllStringSubmatch(word, -1) {
			if !inList(holes, m[1]) {
				holes = append(holes, m[1])
			}
		}
	}
	usage := "Usage: " + strings.ToUpper(strings.Join(append([]string{name}, holes...), " "))
	usage = "Usage: " + name + strings.TrimPrefix(usage, "Usage: "+strings.ToUpper(name))
	if named == nil {
		if len(list) != len(holes) {
			return nil, refuse(codeBadArgument, "arguments", "%s takes another number of arguments: %d, and %d came. %s", name, len(holes), len(list), usage)
		}
		named = map[string]string{}
		for i, hole := range holes {
			named[hole] = list[i]
		}
	}
	for given := range named {
		if !inList(holes, given) {
			return nil, refuse(codeBadArgument, "arguments", "%s has no argument %s. %s", name, quotedWord(given), usage)
		}
	}
	total := 0
	for _, hole := range holes {
		value, ok := named[hole]
		if !ok {
			return nil, refuse(codeBadArgument, "arguments", "The argument %s is missing. %s", hole, usage)
		}
		if total += len(value); len(value) > maxArgument || total > maxArguments {
			return nil, refuse(codeBadArgument, "arguments", "An argument has at most %d bytes, all together %d.", maxArgument, maxArguments)
		}
		rule, err := compileArgRule(c.Args[hole])
		switch {
		case strings.ContainsAny(value, "\x00\r\n"):
			return nil, refuse(codeBadArgument, "arguments", "The argument %s holds a NUL or a line end.", hole)
		case err != nil || !rule.MatchString(value):
			return nil, refuse(codeBadArgument, "arguments", "%s does not fit the argument %s, which matches %s.", quotedWord(value), hole, c.Args[hole])
		case strings.HasPrefix(value, "-") && !allowsDash(c.Args[hole]):
			return nil, refuse(codeBadArgument, "arguments", "The argument %s may not begin with a dash.", hole)
		}
	}
	argv := []string{c.Run[0]}
	for _, word := range c.Run[1:] {
		filled := ""
		for _, hole := range commandPlaceholder.FindAllStringSubmatch(word, -1) {
			before, after, _ := strings.Cut(word, hole[0])
			filled, word = filled+before+named[hole[1]], after
		}
		argv = append(argv, filled+word)
	}
	return argv, nil
}

// allowsDash tells whether a rule says itself that a value may begin with "-":
// with a dash of its own at its beginning. One that only does not forbid it, as
// "[a-z-]+", was hardly meant to let options through.
func allowsDash(rule string) bool {
	re, err := syntax.Parse(rule, syntax.Perl)
	return err == nil && leadingDash(re)
}

func leadingDash(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpLiteral:
		return re.Rune[0] == '-'
	case syntax.OpCharClass: // of signs, as "[+-]"
		for i := 0; i < len(re.Rune); i += 2 {
			if re.Rune[i] < '+' || re.Rune[i+1] > '-' {
				return false
			}
		}
		return true
	case syntax.OpCapture, syntax.OpQuest, syntax.OpStar, syntax.OpPlus, syntax.OpRepeat:
		return leadingDash(re.Sub[0])
	case syntax.OpAlternate:
		return slices.ContainsFunc(re.Sub, leadingDash)
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			if leadingDash(sub) {
				return true
			}
			switch sub.Op {
			case syntax.OpBeginText, syntax.OpBeginLine, syntax.OpEmptyMatch, syntax.OpQuest, syntax.OpStar:
				continue // what comes next may be the first
			}
			return false
		}
	}
	return false
}

// mayExec refuses commands where a password would not be taken: what they print and
// what they are told is as good.
func (s *session) mayExec() bool {
	return s.tls != nil || execInClear(s.user, s.peer, s.nearby())
}

// execInClear is mayExec where there is no TLS.
func execInClear(u *user, peer netip.Addr, nearby bool) bool {
	return !peer.IsValid() || nearby || u.TLS == "optional"
}

// A job is a command that may be run, with all that is known of it before.
type job struct {
	name    string // for log and metrics
	program program
	args    []string // for the log
}

// command is what a user's named command or command line comes down to.
func (s *session) command(name string, list []string, named map[string]string, shell *string) (*job, *refusal) {
	cfg, u := s.srv.config(), s.user
	if !s.mayExec() {
		return nil, refuse(codeDeniedByRule, "tls_required", "Commands are not run in clear text from there; use TLS.")
	}
	j := &job{name: name}
	p := &j.program
	p.Timeout, p.Grace = cfg.Exec.Timeout.std(), cfg.Exec.KillAfter.std()
	read, write := cfg.Exec.Read, cfg.Exec.Write
	if shell != nil {
		switch {
		case !u.Shell:
			s.refused("exec", "command", shellName)
			return nil, refuse(codeDenied, "denied", "This account may not run command lines.")
		case len(*shell) > maxArguments:
			return nil, refuse(codeBadArgument, "arguments", "A command line has at most %d bytes.", maxArguments)
		case strings.ContainsRune(*shell, 0):
			return nil, refuse(codeBadArgument, "arguments", "A command line cannot hold a NUL.")
		}
		j.name, j.args = shellName, []string{userShell(u), "-c", *shell}
	} else {
		c, ok := cfg.Commands[name]
		if !ok || !inList(u.Commands, name) {
			s.refused("exec", "command", name)
			return nil, refuse(codeDenied, "denied", "This account has no command %s.%s", quotedWord(name), ownCommands(u))
		}
		var bad *refusal
		if j.args, bad = c.argv(name, list, named); bad != nil {
			return nil, bad
		}
		if c.Timeout > 0 {
			p.Timeout = c.Timeout.std()
		}
		read, write = slices.Concat(read, c.Read), slices.Concat(write, c.Write)
	}
	if err := sandboxProblem(cfg.Exec.Sandbox); err != nil && cfg.Exec.Runner == "" {
		s.srv.log.Error("command refused", "session", s.id, "user", u.Name, "addr", s.addrText(), "proto", s.proto, "command", j.name, "error", err)
		return nil, refuse(codeDenied, "sandbox", "Commands cannot be run safely here: %v.", err)
	}
	p.Argv = rawTexts(j.args)
	p.Output = int64(cfg.Exec.Output)
	p.FileSize = int64(u.QuotaBytes) // no file larger than all files may be
	t, rel := s.jail.locate(s.cwd)
	p.Root, p.Dir = rawText(t.root.Name()), rawText(rel)
	p.Sandbox = userSandbox(cfg, u, read, write)
	p.Env = rawTexts([]string{
		"PATH=" + runPath, "HOME=" + u.Home, "PWD=" + s.jail.diskPath(s.cwd), "TMPDIR=" + u.Home, "USER=" + u.Name, "LOGNAME=" + u.Name,
		"SHELL=" + userShell(u), "LANG=C.UTF-8",
		"BERTH_USER=" + u.Name, fmt.Sprintf("BERTH_SESSION=%d", s.id), "BERTH_ADDRESS=" + s.addrText(), "BERTH_PROTOCOL=" + s.proto,
	})
	return j, nil
}

func userShell(u *user) string {
	if u.ShellPath != "" {
		return u.ShellPath
	}
	return defaultShell
}

func ownCommands(u *user) string {
	if len(u.Commands) == 0 {
		return ""
	}
	return " It has " + strings.Join(u.Commands, ", ") + "."
}

// userSandbox is what a user's commands may touch: his home, his shares, and what
// the configuration adds; nil if there is to be no sandbox.
func userSandbox(cfg *config, u *user, read, write []string) *sandbox {
	if cfg.Exec.Sandbox == "off" {
		return nil
	}
	box := &sandbox{BestEffort: cfg.Exec.Sandbox == "best-effort", Read: rawTexts(read), Write: append(rawTexts(write), rawText(u.Home))}
	for _, share := range slices.Sorted(maps.Keys(u.Shares)) {
		if sh := u.Shares[share]; sh.Write {
			box.Write = append(box.Write, rawText(sh.Path))
		} else {
			box.Read = append(box.Read, rawText(sh.Path))
		}
	}
	return box
}

// sandboxState tells people what keeps commands in, on this machine.
func sandboxState(e execConfig) string {
	abi := landlockABI()
	switch {
	case e.Sandbox == "off":
		return `no sandbox: exec.sandbox is "off"`
	case e.Runner != "":
		return "the runner's sandbox, at " + e.Runner
	case abi == 0 && e.Sandbox == "landlock":
		return fmt.Sprintf("no sandbox, and so not at all: %v", sandboxProblem(e.Sandbox))
	case abi == 0:
		return "no sandbox: this kernel has no Landlock"
	}
	lacks := ""
	switch {
	case abi < landlockTruncate:
		lacks = "; below ABI 3 commands can cut files short that they may not write"
	case abi < landlockScopes:
		lacks = "; below ABI 6 commands can send signals to processes of their own uid"
	case abi < landlockUnix:
		lacks = "; below ABI 9 commands can connect to any unix socket that their uid may"
	}
	return sandboxLayers() + lacks
}

// openToCommands tells of what should be a secret and lies where every command may
// read: a sandbox allows whole trees, and cannot take anything out of them.
func openToCommands(cfg *config, us []*user) []string {
	if cfg.Exec.Sandbox == "off" || !slices.ContainsFunc(us, func(u *user) bool { return u.Shell || len(u.Commands) > 0 || u.OnUpload != "" }) {
		return nil
	}
	secrets := map[string]string{cfg.Server.UsersDir: "server.users_dir", cfg.Server.StateDir: "server.state_dir", cfg.TLS.Key: "tls.key"}
	for _, u := range us {
		secrets[u.Home] = "the home of " + u.Name
	}
	var notes []string
	for _, path := range slices.Sorted(maps.Keys(secrets)) {
		for _, tree := range slices.Concat(systemRun, systemRead, cfg.Exec.Read, cfg.Exec.Write) {
			if rel, err := filepath.Rel(tree, path); err == nil && filepath.IsAbs(path) && rel != ".." && !strings.HasPrefix(rel, "../") {
				notes = append(notes, fmt.Sprintf("every user's commands can read %s (%s), because they can read %s; keep it elsewhere", path, secrets[path], tree))
				break
			}
		}
	}
	return notes
}

// commandNotes tells of commands that could not run, or not safely, as things are.
// Whether the daemon is root, berth check has to guess.
func commandNotes(cfg *config, us []*user, daemonIsRoot bool) []string {
	var notes []string
	for _, name := range slices.Sorted(maps.Keys(cfg.Commands)) {
		if cfg.Exec.Runner != "" {
			break // it may see another disk
		}
		if err := unix.Access(cfg.Commands[name].Run[0], unix.X_OK); err != nil {
			notes = append(notes, fmt.Sprintf("commands.%s: %s cannot be run here: %v", name, cfg.Commands[name].Run[0], err))
		}
	}
	if daemonIsRoot && cfg.Exec.Runner == "" && slices.ContainsFunc(us, func(u *user) bool { return u.Shell || len(u.Commands) > 0 }) {
		notes = append(notes, "commands run as root, whom a sandbox holds less well than others; give berth a user of its own")
	}
	return append(notes, openToCommands(cfg, us)...)
}

// --- how many at once ---

// takeCommand counts a command in, or says why there is no place for it.
func (s *session) takeCommand() *refusal {
	e := s.srv.config().Exec
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	switch {
	case s.account.commands >= e.ParallelPerUser:
		return refuse(codeBusy, "busy", "You have %d commands running, which is the most; try again when one has ended.", e.ParallelPerUser)
	case s.srv.commands >= e.Parallel:
		return refuse(codeBusy, "busy", "%d commands are running, which is the most; try again in a moment.", e.Parallel)
	}
	s.account.commands++
	s.srv.commands++
	return nil
}

func (s *session) giveCommand(a *account) {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	a.commands--
	s.srv.commands--
}

// runJob runs a command that takeCommand has counted, for as long as x is not
// cancelled, and sees to what comes after it: log, metrics, ledger.
func (s *session) runJob(x *transfer, j *job, io programIO) programResult {
	defer s.giveCommand(s.account)
	ctx, cancel := context.WithCancel(s.srv.ctx)
	defer cancel()
	go func() {
		select {
		case <-x.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	ran := s.elsewhere()
	r := s.srv.launch(ctx, j.program, io)
	ran()
	result := s.reasonOf(x, r)
	s.srv.metrics.commandRun(j.name, result, r.took)
	attrs := []any{"session", s.id, "user", s.user.Name, "addr", s.addrText(), "proto", s.proto, "command", j.name,
		"args", shortened(strings.Join(j.args, " ")), "dir", s.cwd, "tty", j.program.TTY != nil, "dur", r.took.Round(time.Microsecond), "result", result,
		"exit", r.exit, "bytes", r.out, "cpu", r.cpu}
	if r.signal != 0 {
		attrs = append(attrs, "signal", signalName(r.signal))
	}
	if r.err != nil {
		attrs = append(attrs, "error", r.err)
	}
	if r.left {
		attrs = append(attrs, "left", "some of its processes could not be ended")
	}
	s.srv.log.Info("command", attrs...)
	if s.user.Quota != "filesystem" {
		s.srv.house.attend(s.user.Name, time.Now().Add(commandRecount))
	}
	return r
}

// reasonOf is how a command ended, in the word that the client is told.
func (s *session) reasonOf(x *transfer, r programResult) string {
	if r.reason == programCancelled && errors.Is(x.cancelled(), errControlGone) {
		return "client_gone"
	}
	return string(r.reason)
}

// --- signals ---

// commandSignals are what a client may send to its command.
var commandSignals = []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGKILL, unix.SIGUSR1, unix.SIGUSR2,
	unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP, unix.SIGWINCH}

func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	return fmt.Sprintf("%d", int(sig))
}

func signalNames() []string {
	var names []string
	for _, sig := range commandSignals {
		names = append(names, signalName(sig))
	}
	return names
}

// --- exec over frames ---

// commandRun is what a client sends to its running command.
type commandRun struct {
	look    func()      // sees whether the client has gone, while stdin waits
	stdin   *stdinQueue // nil: the command has none
	control chan programControl
	over    chan struct{} // closed when it has ended
}

func (c *commandRun) data(p []byte) {
	if c.stdin == nil || c.stdin.ended {
		return // whoever wants stdin says so, and what comes behind its end means nothing
	}
	for len(p) > 0 {
		n, over := c.stdin.put(p)
		if over {
			return // nobody reads it any more
		}
		if p = p[n:]; n > 0 {
			continue
		}
		t := time.NewTimer(goneLook)
		select {
		case <-c.stdin.room:
		case <-c.stdin.closed:
		case <-t.C:
			c.look()
		}
		t.Stop()
	}
}

func (c *commandRun) end() {
	if c.stdin != nil {
		c.stdin.finish()
	}
}

func (c *commandRun) signal(name string) error {
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	for _, sig := range commandSignals {
		if signalName(sig) == name {
			c.send(programControl{signal: sig})
			return nil
		}
	}
	return errors.New("no such signal")
}

func (c *commandRun) resize(rows, cols uint16) {
	c.send(programControl{size: &terminalSize{rows, cols}})
}

//go:noinline
func (c *commandRun) send(p programControl) {
	select {
	case c.control <- p:
	case <-c.over:
	}
}

// stdinQueue is a command's stdin: what has come and is not read yet, at most
// stdinAhead bytes. One goroutine fills it and one reads.
type stdinQueue struct {
	ended  bool // by the one that fills it
	once   sync.Once
	closed chan struct{}
	more   chan struct{} // there is something to read, or the end of it
	room   chan struct{} // there is room again

	mu   mutex  // guards what follows
	held []byte // from read on
	read int
	end  bool
}

//go:noinline
func newStdinQueue() *stdinQueue {
	return &stdinQueue{closed: make(chan struct{}), more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// put takes as much of p as there is room for. over tells that nobody will read it.
func (q *stdinQueue) put(p []byte) (n int, over bool) {
	select {
	case <-q.closed:
		return 0, true
	default:
	}
	q.mu.Lock()
	n = min(len(p), stdinAhead-(len(q.held)-q.read))
	if len(q.held)+n > stdinAhead {
		q.held = append(q.held[:0], q.held[q.read:]...)
		q.read = 0
	}
	q.held = append(q.held, p[:n]...)
	q.mu.Unlock()
	if n > 0 {
		wake(q.more)
	}
	return n, false
}

func (q *stdinQueue) finish() {
	q.ended = true
	q.mu.Lock()
	q.end = true
	q.mu.Unlock()
	wake(q.more)
}

// wake fills a channel of one place, for whoever waits on it now or next.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (q *stdinQueue) Read(p []byte) (int, error) {
	for {
		q.mu.Lock()
		n := copy(p, q.held[q.read:])
		if q.read += n; q.read == len(q.held) {
			q.held, q.read = q.held[:0], 0
		}
		end := q.end
		q.mu.Unlock()
		if n > 0 {
			wake(q.room)
			return n, nil
		}
		if end {
			return 0, io.EOF
		}
		select {
		case <-q.more:
		case <-q.closed:
			return 0, io.ErrClosedPipe
		}
	}
}

// Close wakes whoever reads or fills it.
func (q *stdinQueue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

type execAnswer struct {
	answer
	Exit   *int   `json:"exit,omitempty"`
	Signal string `json:"signal,omitempty"`
	CPU    int64  `json:"cpu_ms"`
	MaxRSS int64  `json:"max_rss"` // bytes
	Bytes  int64  `json:"bytes"`   // of output
}

func (s *session) doExec(q *request) error {
	if (q.Command == "") == (q.Shell == nil) {
		return s.badField("exec needs one of command, the name of one, and shell, a command line.")
	}
	list, named, err := execArgs(q)
	if err != nil {
		return s.badField("%v.", err)
	}
	if q.Shell != nil {
		if dir, ok := changesDirectory(*q.Shell); ok && s.user.Shell {
			return s.shellCd(dir)
		}
	}
	j, bad := s.command(q.Command, list, named, q.Shell)
	if bad == nil && q.TTY {
		bad = s.giveTerminal(q, j)
	}
	if bad == nil {
		bad = s.takeCommand()
	}
	if bad != nil {
		s.answer(&answer{Code: bad.code, Reason: bad.reason, Text: bad.text})
		return nil
	}
	j.program.Stdin = q.Stdin || q.TTY
	return s.execFramed(j)
}

// execArgs is args as a list or by name.
func execArgs(q *request) (list []string, named map[string]string, err error) {
	switch raw := bytes.TrimSpace(q.Args); {
	case len(raw) == 0 || string(raw) == "null":
	case q.Shell != nil:
		return nil, nil, errors.New("a command line has no args")
	case raw[0] == '[':
		err = json.Unmarshal(raw, &list)
	default:
		err = json.Unmarshal(raw, &named)
	}
	if err != nil {
		err = errors.New(`args are a list of strings, or an object of strings by name`)
	}
	return list, named, err
}

// giveTerminal makes the command's pipes a terminal.
func (s *session) giveTerminal(q *request, j *job) *refusal {
	if q.Shell == nil && !s.srv.config().Commands[q.Command].TTY {
		return refuse(codeBadParameter, "no_tty", "%s has no terminal.", q.Command)
	}
	size := terminalSize{q.Rows, q.Cols}
	if size.Rows == 0 {
		size.Rows = defaultRows
	}
	if size.Cols == 0 {
		size.Cols = defaultCols
	}
	term := q.Term
	if len(term) > 40 || strings.Trim(term, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+._-") != "" || term == "" {
		term = "xterm" // it becomes part of paths
	}
	j.program.TTY = &size
	j.program.Env = append(j.program.Env, rawText("TERM="+term))
	return nil
}

func (s *session) execFramed(j *job) error {
	x := newTransfer(0, nil)
	x.attended, x.command = true, j.name
	// While the command runs a client may stop reading for as long as it likes, and
	// the command waits. Once it is to end, what is left of its output has a time.
	soon := func(time.Time) error { return s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) }
	x.unblock = soon
	in := &commandRun{control: make(chan programControl, 1), over: make(chan struct{}), look: func() { s.gone(x) }}
	p := programIO{control: in.control}
	if j.program.Stdin {
		in.stdin = newStdinQueue()
		p.stdin = in.stdin
	}
	p.started = func() {
		s.reply(codeDataOpening, "Running.")
		s.flush()
	}
	p.output = func(stream byte, b []byte) error {
		if x.cancelled() != nil {
			return errAborted // nobody waits for it
		}
		s.wmu.Lock()
		defer s.wmu.Unlock()
		for len(b) > 0 {
			n := min(len(b), maxFrame)
			s.frameLocked(frameType(stream), b[:n])
			b = b[n:]
		}
		return s.flushLocked()
	}
	if t := j.program.Timeout; t > 0 {
		defer time.AfterFunc(t+j.program.Grace, func() { soon(time.Time{}) }).Stop()
	}
	s.flush()
	s.wmu.Lock()
	s.patient = true
	s.conn.SetWriteDeadline(time.Time{})
	s.fr.input = in
	s.wmu.Unlock()
	var r programResult
	s.watchedFrom(0, x, s.verb+" "+j.name, func() error {
		r = s.runJob(x, j, p)
		close(in.over)
		if in.stdin != nil {
			in.stdin.Close()
		}
		return nil
	})
	s.wmu.Lock()
	s.patient = false
	s.fr.input = nil
	broken := s.outErr
	s.wmu.Unlock()
	if broken != nil {
		return broken
	}
	s.answer(s.execResult(x, r))
	return nil
}

// execResult is the final answer to a command.
func (s *session) execResult(x *transfer, r programResult) *execAnswer {
	a := &execAnswer{answer: answer{Code: codeDataClosed, Reason: s.reasonOf(x, r)}, CPU: r.cpu.Milliseconds(), MaxRSS: r.maxRSS, Bytes: r.out}
	if r.exit >= 0 {
		a.Exit = &r.exit
	}
	if r.signal != 0 {
		a.Signal = signalName(r.signal)
	}
	a.Text = resultText(r)
	switch r.reason {
	case programCancelled:
		a.Code = codeAborted
	case programStartFailed:
		a.Code, a.CPU, a.MaxRSS = codeDenied, 0, 0 // they would be berth's own
	}
	return a
}

// resultText says how a command ended, to people.
func resultText(r programResult) string {
	how := fmt.Sprintf("exit status %d", r.exit)
	switch {
	case r.signal != 0:
		how = "signal " + signalName(r.signal)
	case r.exit < 0:
		how = "how is not known"
	}
	switch r.reason {
	case programTimeout:
		return fmt.Sprintf("It took longer than it may and was ended (%s).", how)
	case programOutputLimit:
		return fmt.Sprintf("It wrote more than it may and was ended after %d bytes (%s).", r.out, how)
	case programCancelled:
		return fmt.Sprintf("It was ended on request (%s).", how)
	case programStartFailed:
		return fmt.Sprintf("It could not be started: %v.", r.err)
	}
	return fmt.Sprintf("Ended with %s.", how)
}

// changesDirectory tells whether a command line does nothing but cd, which is
// meant for the session: in a shell of its own it would come to nothing.
func changesDirectory(line string) (dir string, ok bool) {
	line = strings.Trim(line, " \t\n")
	if line == "cd" {
		return "/", true
	}
	dir, ok = cutPrefix(line, "cd ")
	if !ok {
		return "", false
	}
	dir = strings.Trim(dir, " \t")
	if n := len(dir); n >= 2 && (dir[0] == '"' || dir[0] == '\'') && dir[n-1] == dir[0] {
		q := dir[:1]
		dir = dir[1 : n-1]
		if strings.Contains(dir, q) || q == `"` && strings.ContainsAny(dir, "$`\\") {
			return "", false
		}
		return dir, true
	}
	if dir == "~" {
		return "/", true
	}
	return dir, !strings.ContainsAny(dir, " \t\n\"'\\$`;&|<>()*?[]#~{}") && dir != "-" && dir != ""
}

// shellCd answers a command line that is a cd as the shell would: with its exit
// status, and what is wrong on stderr.
func (s *session) shellCd(dir string) error {
	s.reply(codeDataOpening, "Running.")
	// A shell shows where the home is on the disk; that name is understood too.
	if rel, err := filepath.Rel(s.user.Home, dir); err == nil && filepath.IsAbs(dir) && rel != ".." && !strings.HasPrefix(rel, "../") {
		dir = "/" + rel
	}
	exit := 0
	p, err := s.path(dir)
	if err == nil {
		err = s.jail.isDir(p)
	}
	if err != nil {
		exit = 1
		_, _, text := s.replyFor(err)
		s.frame(frameStderr, []byte("cd: "+dir+": "+text+"\n"))
	} else {
		s.cwd = p
	}
	s.answer(&execAnswer{answer: answer{Code: codeDataClosed, Reason: string(programExited), Text: fmt.Sprintf("Ended with exit status %d.", exit)}, Exit: &exit})
	return nil
}

// --- SITE EXEC ---

// siteEXEC runs a named command and puts what it prints into the reply.
func (s *session) siteEXEC(arg string) error {
	words := strings.Fields(arg)
	if len(words) == 0 {
		s.reply(codeBadArgument, "Usage: SITE EXEC NAME [ARGUMENTS]")
		return nil
	}
	j, bad := s.command(words[0], words[1:], nil, nil)
	if bad == nil {
		bad = s.takeCommand()
	}
	if bad != nil {
		s.reply(bad.code, bad.text)
		return nil
	}
	j.program.Output = siteLimit(j.program.Output)
	x := newTransfer(0, nil)
	x.command = j.name
	x.unblock = func(time.Time) error { return nil }
	w := &replyWriter{s: s}
	x.silence = w.probe
	p := programIO{
		started: func() {
			s.wmu.Lock()
			s.put(codeOK, '-', "Output of "+words[0]+":")
			s.wmu.Unlock()
			s.flush()
		},
		output: func(_ byte, b []byte) error { return w.write(b) },
	}
	s.flush()
	var r programResult
	aborts, _ := s.watchedFrom(0, x, "SITE EXEC "+words[0], func() error {
		r = s.runJob(x, j, p)
		return nil
	})
	w.end()
	if r.reason == programStartFailed {
		s.reply(codeDenied, resultText(r))
	} else {
		s.reply(codeOK, resultText(r))
	}
	s.lateAborts(aborts)
	return nil
}

// siteLimit is the bound of output under which limit, 0 for none, and siteOutput hold.
func siteLimit(limit int64) int64 {
	if limit == 0 {
		return siteOutput
	}
	return min(limit, siteOutput)
}

// replyWriter puts a command's output into a multi-line reply: each line with a
// space in front, so that nothing that is printed ends the reply.
type replyWriter struct {
	s    *session
	line []byte
}

func (w *replyWriter) write(p []byte) error {
	w.s.wmu.Lock()
	defer w.s.wmu.Unlock()
	for len(p) > 0 {
		before, after, ended := bytes.Cut(p, []byte{'\n'})
		w.line = append(w.line, before...)
		p = after
		if ended || len(w.line) > maxLine {
			w.s.putText(" " + string(bytes.TrimSuffix(w.line, []byte{'\r'})))
			w.line = w.line[:0]
		}
	}
	return w.s.flushLocked()
}

func (w *replyWriter) end() {
	w.s.wmu.Lock()
	defer w.s.wmu.Unlock()
	if len(w.line) > 0 {
		w.s.putText(" " + string(w.line))
	}
}

// probe sends an empty line to a client that will send nothing more: if he has
// gone, and not only finished talking, the answer is a reset.
func (w *replyWriter) probe() {
	w.s.wmu.Lock()
	defer w.s.wmu.Unlock()
	w.s.putText(" ")
	w.s.flushLocked()
}
