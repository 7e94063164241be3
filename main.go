// Berth is a file and command server for small Linux boxes: every user gets a
// jailed home with a quota, reached by any FTP client, by netcat, or by
// berth's own framed protocol.
//
//	berth demo [DIR]      a server on loopback with a user "demo", nothing to set up
//	berth serve           the daemon
//	berth check           say what is wrong with the configuration, with file and line
//	berth user ...        add, change, list and delete users
//	berth get, put ...    the client: berth help lists its verbs
//	berth health          ask a running daemon whether it is well
//	berth version
//
// This file owns the command line: its verbs, their usage and the demo. The daemon
// itself is in server.go.
//
// Sockets are plain TCP and not MPTCP, Go's default: MPTCP costs more, and
// Landlock's rules for ports let it through.
//
//go:debug multipathtcp=0
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Exit codes of contract section 9.
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNoConn   = 3
	exitMismatch = 4

	// healthTimeout bounds the whole of berth health, from the name's look-up to
	// the answer's last byte: /healthz takes healthWithin at most, so a daemon that needs
	// longer is not well.
	healthTimeout = 5 * time.Second

	// What berth health reads and prints of something that may not be berth: our
	// own answer is below 300 bytes, header and all.
	healthAnswerLimit = 16 << 10
	healthPageLimit   = 1 << 10
)

// version is set when a release is linked: -ldflags "-X main.version=1.2.3".
var version string

func main() {
	runtime.MemProfileRate = 0 // its table alone is more than a megabyte, and nobody reads it
	if v := findVerb(strings.Join(os.Args[1:min(2, len(os.Args))], "")); v != nil && v.client {
		boundMemory()
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// configOption is what all of the daemon's verbs take.
var configOption = option{name: "config", arg: "FILE", help: "the daemon's configuration", def: defaultConfigPath}

// verbs is the table of all verbs, in the order in which they are shown. What a
// verb is, is in verbs.go; those of the client are in client_verbs.go.
func verbs() []verb {
	return append(daemonVerbs(), clientVerbs()...)
}

func daemonVerbs() []verb {
	return slices.Concat([]verb{
		{name: "demo", args: "[DIR]", max: 1, words: localWords, run: runDemo,
			help: `a server on loopback with a user "demo", nothing to set up`,
			text: "Prints one line that begins with ready and tells addresses, user and password, and then commands to\ntry. Without DIR, files are in ~/.local/state/berth-demo. Ctrl-C ends it; the files stay.",
			options: []option{
				{name: "control", arg: "ADDR", help: "control connections on ADDR; port 0 takes a free one", def: "127.0.0.1:2121"},
				{name: "datagram", arg: "ADDR", help: "the datagram service on ADDR", def: "127.0.0.1:2121"},
				{name: "http", arg: "ADDR", help: "metrics and health on ADDR", def: "127.0.0.1:9621"},
				{name: "password-file", arg: "FILE", help: "the password is in FILE, or is put there if there is none"},
			},
			examples: []example{
				{"berth demo", "files in a directory of its own, the same each time"},
				{"berth demo --control 127.0.0.1:0 ./files", "the files in ./files, on a free port"},
			}},
		{name: "serve", options: []option{configOption}, run: runServe,
			help: "the daemon",
			text: "Stays in the foreground and logs to standard error. SIGTERM drains, SIGHUP reads the configuration\nagain. Takes sockets from systemd.",
			examples: []example{
				{"berth serve", "with /etc/berth/berth.toml"},
				{"berth serve --config try/berth.toml", "with another configuration"},
			}},
		{name: "runner", options: []option{configOption}, run: runRunner,
			help: "run commands for the daemon, in a unit of its own",
			text: "For a daemon that its unit locks in; exec.runner of the configuration names the socket for both.",
			examples: []example{
				{"berth runner", "with /etc/berth/berth.toml"},
				{"berth runner --config try/berth.toml", "with another configuration"},
			}},
		{name: "check", args: "[user=NAME from=ADDRESS]", max: 2, options: []option{configOption, explainOption, {name: "json", help: "with --explain: one JSON object"}}, run: runCheck,
			help: "say what is wrong with the configuration, with file and line",
			text: "With --explain it tells whether a user may log in from an address, and what holds for him then: each step as the daemon decides it, with the key and the line that decide. A daemon that runs is asked for what is in no file: bans, and how many sessions there are. from=local is the unix socket, and without from he comes from this machine. Exit code 0 if he may log in, 1 if not, or if the configuration has mistakes.",
			examples: []example{
				{"berth check", "the configuration of the system"},
				{"berth check --config berth.toml && systemctl reload berth", "only what is right is loaded"},
				{"berth check --explain user=ann from=10.0.0.7", "why she can log in from there, or cannot"},
			}},
		{name: "user", args: "add|passwd|set|del|list|show|scan|usage NAME ...", raw: true, max: -1,
			help: "manage users",
			text: "berth user VERB -h tells the options of each.",
			run:  func(inv *invocation) error { return exitWith(runUser(inv.args, inv.stdin, inv.stdout, inv.stderr)) },
			examples: []example{
				{"berth user add ann --quota 2GiB", "asks for her password"},
				{"berth user set ann --permissions read,list", "she may read only from her next login on"},
			}},
	}, adminVerbs(), []verb{
		doctorVerb(),
		{name: "health", options: []option{configOption}, run: runHealth,
			help: "ask the running daemon whether it is well",
			examples: []example{
				{"berth health", "exit code 0 if it is; for HEALTHCHECK and scripts"},
				{"berth health --config try/berth.toml", "the one with that configuration"},
			}},
		{name: "version", run: runVersion,
			help: "tell the version",
			examples: []example{
				{"berth version", "version, Go version and platform"},
				{"berth --version", "the same"},
			}},
	})
}

// run is the program: it returns the exit code, so that tests can call it.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stderr)
		return exitUsage
	}
	switch args[0] {
	case "-h", "--help", "-help":
		usage(stdout)
		return exitOK
	case "--version", "-version":
		args[0] = "version"
	case helperVerb: // not for people: see sandbox.go
		return runHelper(stderr)
	case completeVerb: // nor is this: see client_complete.go
		return runComplete(args[1:], stdout)
	}
	if v := findVerb(args[0]); v != nil {
		return v.call(args[1:], stdin, stdout, stderr)
	}
	fmt.Fprintf(stderr, "berth: %v\n", noVerb(args[0]))
	return exitUsage
}

func usage(w io.Writer) {
	const column = 30 // what is longer has a line of its own
	fmt.Fprint(w, "Usage: berth COMMAND [OPTIONS]\n\nOn the box:\n")
	client := false
	for _, v := range verbs() {
		if v.client && !client {
			fmt.Fprint(w, "\nFrom anywhere; what is on a box is named as for scp, [USER@]HOST:PATH:\n")
			client = true
		}
		use := strings.TrimRight(v.name+" "+v.args, " ")
		if len(use) > column {
			use += fmt.Sprintf("\n%*s", len("  berth ")+column, "")
		}
		fmt.Fprintf(w, "  berth %-*s %s\n", column, use, v.help)
	}
	fmt.Fprint(w, "\nberth help COMMAND says more about one of them.\nBegin with: berth demo\n")
}

// --- version, check, health ---

func runVersion(inv *invocation) error {
	stdout := inv.stdout
	v, rev := buildVersion()
	fmt.Fprintf(stdout, "berth %s %s %s/%s", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if rev != "" {
		fmt.Fprintf(stdout, " %s", rev)
	}
	fmt.Fprintln(stdout)
	return nil
}

// buildVersion is the linked version, or what the Go tool recorded.
func buildVersion() (v, revision string) {
	v = version
	if info, ok := debug.ReadBuildInfo(); ok {
		if v == "" && info.Main.Version != "" && info.Main.Version != "(devel)" {
			v = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	if v == "" {
		v = "dev"
	}
	return v, revision
}

// configured loads the configuration that --config names. Its errors name file and
// line themselves, and are printed as they are.
func (inv *invocation) configured() (*config, string, error) {
	path := inv.str("config")
	cfg, err := loadConfig(path)
	if err != nil {
		fmt.Fprintln(inv.stderr, err)
		return nil, path, exitWith(exitFailed)
	}
	return cfg, path, nil
}

func runCheck(inv *invocation) error {
	stdout, stderr := inv.stdout, inv.stderr
	switch {
	case inv.on("explain"):
		return runExplain(inv)
	case len(inv.args) > 0:
		return usageErr("unexpected argument %s; with --explain %s", configQuote(inv.args[0]), explainForm)
	}
	cfg, path, err := inv.configured()
	if err != nil {
		return err
	}
	us, err := loadUsers(cfg.Server.UsersDir, cfg.Server.StateDir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Fprintln(stderr, err)
		return exitWith(exitFailed)
	}
	if err := checkTogether(cfg, us.all()); err != nil {
		fmt.Fprintln(stderr, err)
		return exitWith(exitFailed)
	}
	for _, u := range us.all() {
		if u.WhenFull == "rotate" && u.limit() == (quota{}) {
			fmt.Fprintf(stdout, "note: user %s: when_full = \"rotate\" does nothing without quota_bytes or quota_files\n", u.Name)
		}
	}
	n := len(us.all())
	users := "users"
	if n == 1 {
		users = "user"
	}
	// Who runs check is root mostly, and the daemon is whom its files belong to.
	var state unix.Stat_t
	daemonIsRoot := os.Geteuid() == 0 && (unix.Stat(cfg.Server.StateDir, &state) != nil || state.Uid == 0)
	for _, note := range append(httpNotes(cfg, us.all()), commandNotes(cfg, us.all(), daemonIsRoot)...) {
		fmt.Fprintf(stdout, "note: %s\n", note)
	}
	fmt.Fprintf(stdout, "note: commands run with %s\n", sandboxState(cfg.Exec))
	fmt.Fprintf(stdout, "%s: the configuration is good, with %d %s in %s\n", path, n, users, cfg.Server.UsersDir)
	if n == 0 {
		fmt.Fprintf(stdout, "nobody can log in yet; add someone with: berth user add NAME --config %s\n", path)
	}
	return nil
}

func runHealth(inv *invocation) error {
	stdout, stderr := inv.stdout, inv.stderr
	cfg, path, err := inv.configured()
	if err != nil {
		return err
	}
	if len(cfg.Listen.HTTP) == 0 {
		fmt.Fprintf(stderr, "berth health: listen.http is empty in %s; health asks /healthz there\n", path)
		return exitWith(exitUsage)
	}
	host, port, _ := net.SplitHostPort(cfg.Listen.HTTP[0])
	hosts := []string{host}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		hosts = []string{"127.0.0.1", "::1"} // and no name, which a container may not know
	}
	var status int
	var answer []byte
	for _, host := range hosts {
		if status, answer, err = askHealthz(joinHostPort(host, port), cfg.HTTP.TLS); err == nil {
			break
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "berth health: no answer: %v; is berth running?\n", err)
		return exitWith(exitNoConn)
	}
	fmt.Fprintf(stdout, "%s\n", answer)
	if status != httpOK {
		return exitWith(exitFailed)
	}
	return nil
}

// askHealthz asks the daemon's http listener and returns the status code and
// what the page says. It is not http.Client because that links HTTP/2, proxies
// and redirects, some 450 KB that a question on loopback has no use for. The
// request is HTTP/1.0, so the answer ends with the connection; what is no answer
// of HTTP, or less than it promises, is an error. Under TLS no certificate is looked
// at: nothing is told to whoever has the port, and the name in it need not be localhost.
func askHealthz(address string, secure bool) (status int, answer []byte, err error) {
	deadline := time.Now().Add(healthTimeout)
	conn, err := (&net.Dialer{Deadline: deadline}).Dial("tcp", address)
	if err != nil {
		return 0, nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, nil, err
	}
	if secure {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.0\r\nUser-Agent: berth\r\n\r\n"); err != nil {
		return 0, nil, err
	}
	all, err := io.ReadAll(io.LimitReader(conn, healthAnswerLimit))
	if err != nil {
		return 0, nil, errorf("%s: %w", address, err)
	}
	head, page, whole := bytes.Cut(all, []byte("\r\n\r\n"))
	first, fields, _ := cutText(string(head), "\r\n")
	version, rest, _ := cutText(first, " ")
	code, _, _ := cutText(rest, " ")
	if status, err = strconv.Atoi(code); err != nil || status < 100 || !whole || !beginsWith(version, "HTTP/1.") {
		return 0, nil, errorf("%s: this is no answer of HTTP", address)
	}
	for line := range strings.Lines(fields) {
		name, value, _ := cutText(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && strings.EqualFold(name, "Content-Length") && n > len(page) && len(all) < healthAnswerLimit {
			return 0, nil, errorf("%s: the answer was cut short", address)
		}
	}
	return status, bytes.TrimSpace(page[:min(len(page), healthPageLimit)]), nil
}

// --- serve ---

func runServe(inv *invocation) error {
	stderr := inv.stderr
	cfg, path, err := inv.configured()
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	log := newLogger("berth", cfg.Log, level, stderr)
	srv, err := newServer(cfg, log, level, true)
	if err != nil {
		fmt.Fprintf(stderr, "berth serve: %v\n", err)
		return exitWith(exitFailed)
	}
	srv.configPath = path
	if err := srv.open(true); err != nil {
		fmt.Fprintf(stderr, "berth serve: %v\n", err)
		return exitWith(exitFailed)
	}
	return exitWith(srv.live(nil))
}

// runRunner is the runner until SIGTERM; commands that run then are ended.
func runRunner(inv *invocation) error {
	stderr := inv.stderr
	cfg, _, err := inv.configured()
	if err != nil {
		return err
	}
	log := newLogger("berth-runner", cfg.Log, new(slog.LevelVar), stderr)
	ln, err := runnerSocket(strings.TrimPrefix(cfg.Exec.Runner, commandRunnerScheme))
	if err != nil {
		fmt.Fprintf(stderr, "berth runner: %v\n", err)
		return exitWith(exitFailed)
	}
	r := newRunner(cfg, log, true)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, func() { ln.Close(); r.end() })
	log.Info("serving", "listeners", "runner="+ln.Addr().String(), "landlock", landlockABI())
	if err := r.serve(ln); err != nil {
		fmt.Fprintf(stderr, "berth runner: %v\n", err)
		return exitWith(exitFailed)
	}
	return nil
}

// --- demo ---

// demoState is where a demo keeps its user, keys and certificate: below the
// directory that it shows, under a name that no client can see.
const demoState = reservedPrefix + "state"

func runDemo(inv *invocation) error {
	d := demo{control: inv.str("control"), datagram: inv.str("datagram"), http: inv.str("http"), passwordFile: inv.str("password-file")}
	if len(inv.args) == 1 {
		d.dir = inv.args[0]
	}
	srv, password, err := d.prepare(inv.stderr)
	if err != nil {
		return err
	}
	return exitWith(srv.live(func() { d.greet(inv.stdout, srv, password) }))
}

type demo struct {
	dir, control, datagram, http, passwordFile string
}

// demoDir is where files go if no directory was named: the same each time, so
// that a second run finds them.
func demoDir() (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", errorf("%w; name a directory: berth demo DIR", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return joinPath(base, "berth-demo"), nil
}

func (d *demo) prepare(stderr io.Writer) (*server, string, error) {
	var err error
	if d.dir == "" {
		if d.dir, err = demoDir(); err != nil {
			return nil, "", err
		}
	}
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return nil, "", err
	}
	state := joinPath(d.dir, demoState)
	users := joinPath(state, "users.d")
	if err := os.MkdirAll(users, 0o700); err != nil {
		return nil, "", err
	}
	password, err := d.password()
	if err != nil {
		return nil, "", err
	}
	hash, err := hashPassword(password)
	if err != nil {
		return nil, "", err
	}
	file := fmt.Sprintf("# Made anew by every berth demo.\npassword = %q\nhome = %q\nsessions = 100\n", hash, d.dir)
	if err := writeFileAtomic(joinPath(users, "demo.toml"), []byte(file), 0o600); err != nil {
		return nil, "", err
	}
	cfg := defaultConfig()
	cfg.Server.Name = "berth demo"
	cfg.Server.StateDir, cfg.Server.UsersDir = state, users
	cfg.Server.Drain = duration(5 * time.Second)
	cfg.Listen = listenConfig{Control: []string{d.control}, Datagram: []string{d.datagram}, HTTP: []string{d.http}}
	cfg.Log.Level = "warn"
	level := new(slog.LevelVar)
	srv, err := newServer(cfg, newLogger("berth", logConfig{Format: "text", Level: cfg.Log.Level}, level, stderr), level, true)
	if err != nil {
		return nil, "", err
	}
	if err := srv.open(false); err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			err = errorf("%w; choose others with --control, --datagram and --http, as 127.0.0.1:0 for a free one", err)
		}
		return nil, "", err
	}
	return srv, password, nil
}

// password is the one in the file, or a new one, which then goes there. Without
// --password-file it is kept with the demo's state, so that a second run has
// the same and what was pasted once still works.
func (d *demo) password() (string, error) {
	file := d.passwordFile
	if file == "" {
		file = filepath.Join(d.dir, demoState, "password")
	}
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	line, _, _ := cutText(string(b), "\n")
	if line = strings.TrimSuffix(line, "\r"); line != "" {
		return line, nil
	}
	var random [10]byte
	rand.Read(random[:])
	p := strings.ToLower(base32.StdEncoding.EncodeToString(random[:]))
	return p, writeFileAtomic(file, []byte(p+"\n"), 0o600)
}

// greet prints the line that scripts read and commands for people to try.
func (d *demo) greet(w io.Writer, s *server, password string) {
	at := map[string]string{}
	for _, k := range s.sockets {
		at[k.kind] = k.addr().String()
	}
	b := bufio.NewWriter(w)
	defer b.Flush()
	fmt.Fprintf(b, "ready control=%s datagram=%s http=%s user=demo password=%s dir=%s\n", at["control"], at["datagram"], at["http"], password, d.dir)
	host, port, _ := net.SplitHostPort(at["control"])
	certificate := filepath.Join(d.dir, demoState, "tls", "cert.pem")
	uhost, uport, _ := net.SplitHostPort(at["datagram"])
	self := shellQuote(os.Args[0])
	if hasText(self, "go-build") { // go run, whose binary is gone by then
		self = "go run ."
	}
	fmt.Fprintf(b, `
Files are in %s. Try, in another terminal:

  export BERTH_PASSWORD=%s BERTH_URL=berth://demo@%s
  %s put README.md : && %s ls -l && %s sh
  curl -T README.md ftp://demo:%s@%s/
  curl ftp://demo:%s@%s/
  curl --ssl-reqd --cacert %s ftp://demo:%s@%s/
  lftp -u demo,%s -p %s -e %s %s
  printf 'USER demo\nPASS %s\nSTAT .\nQUIT\n' | nc -w 5 %s %s
  echo time | nc -u -w 1 %s %s
  curl http://%s/metrics

Ctrl-C ends it; the files stay.
`, d.dir, password, at["control"], self, self, self,
		password, at["control"], password, at["control"],
		shellQuote(certificate), password, at["control"],
		password, port, shellQuote(`set ssl:ca-file "`+certificate+`"`), host,
		password, host, port, uhost, uport, at["http"])
}

// shellQuote is s as one word of a shell.
func shellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:@=,%+") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// newFilePrefix begins the names of files that writeFileAtomic is writing.
const newFilePrefix = reservedPrefix + "new-"

// writeFileAtomic replaces a small file: a reader sees the old or the new.
func writeFileAtomic(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), newFilePrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
