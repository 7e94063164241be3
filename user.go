package main

// The command line `berth user`: verbs, flags, the password prompt and what is printed.
// A file of its own because it is a program beside the daemon, run by people, mostly as
// root, and shares nothing with it but the files. What a file means is users.go's
// business, how one is changed user_write.go's. A running daemon sees a new file at the
// next login; only scan and usage talk to it, as it has the ledger.

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/term"
)

// shortPassword is the length below which a new password is taken with a warning:
// NIST SP 800-63B section 5.1.1.1 asks for eight, some cameras cannot do more.
const shortPassword = 8

const userHelp = `Usage: berth user VERB NAME [flags]

  add     make a user, with a password from a prompt
  passwd  give a user a new password
  set     change settings; what the flags do not name stays as it is
  del     remove a user; his files stay
  list    all users
  show    the settings of one user, defaults filled in
  scan    count a user's files anew, also while he works in them
  usage   what users store, and how much of their quota that is

"berth user VERB -h" tells the flags. A change holds from the user's next login; for
sessions that are open, after berth reload.

Example:
  berth user add scanner --quota 2GiB --permissions write,list --allow-from 192.168.1.0/24
`

// userKeys is the order of the keys in a new file: the contract's.
var userKeys = []string{"password", "certificates", "home", "quota", "quota_bytes", "quota_files", "permissions",
	"commands", "shell", "shell_path", "profile", "tls", "quirks", "allow_from", "sessions", "download_rate", "upload_rate", "when_full", "expire", "uid",
	"shares", "on_upload", "disabled"}

// userVerb is one word after berth user.
type userVerb struct {
	name     string
	purpose  string
	settings bool // takes the flags that set keys
	password bool // takes the flags that give a password
	json     bool // takes --json
	nameless bool // takes no NAME
	all      bool // takes none for all users, and --sort
	example  string
	run      func(*userCommand) error
}

var userVerbs = []userVerb{
	{name: "add", purpose: "make a user, with a password from a prompt", settings: true, password: true,
		example: "berth user add ann --quota 2GiB --share public=/srv/public", run: (*userCommand).add},
	{name: "passwd", purpose: "give a user a new password, from a prompt", password: true,
		example: "pwgen 20 1 | berth user passwd ann --password-stdin", run: (*userCommand).passwd},
	{name: "set", purpose: "change settings of a user; what the flags do not name stays, comments too", settings: true,
		example: "berth user set ann --permissions read,list --tls optional", run: (*userCommand).set},
	{name: "del", purpose: "remove a user; his files stay", example: "berth user del ann", run: (*userCommand).del},
	{name: "list", purpose: "all users", json: true, nameless: true, example: "berth user list --json", run: (*userCommand).list},
	{name: "show", purpose: "the settings of one user, defaults filled in", json: true, example: "berth user show ann", run: (*userCommand).show},
	{name: "scan", purpose: "count a user's files anew and correct the quota ledger, also while he works in them", example: "berth user scan ann", run: (*userCommand).scan},
	{name: "usage", purpose: "what users store, and how much of their quota that is; without NAME all of them", json: true, all: true, example: "berth user usage --sort used", run: (*userCommand).usage},
}

// userCommand is one run of berth user.
type userCommand struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	name          string
	configPath    string
	passwordStdin bool
	noPassword    bool
	passwordHash  string
	json          bool
	sort          string

	edits  map[string]string // key to its TOML value, "" to leave the key out
	shares map[string]string // share to PATH[:rw], "" to remove it

	users *users
	local []string // the daemon's local sockets
}

// userUsageError is a mistake in the command line itself: exit code 2.
type userUsageError struct{ problem string }

func (e userUsageError) Error() string { return e.problem }

// runUser runs berth user with the arguments after that word. It returns the exit code:
// 0 done, 1 not done, 2 usage.
func runUser(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		io.WriteString(stderr, userHelp)
		return 2
	}
	if inList([]string{"-h", "-help", "--help", "help"}, args[0]) {
		io.WriteString(stdout, userHelp)
		return 0
	}
	fail := func(err error) int {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(stderr, "berth user: %s\n", strings.TrimRight(line, "\n"))
		}
		if errors.As(err, new(userUsageError)) {
			return 2
		}
		return 1
	}
	i := slices.IndexFunc(userVerbs, func(v userVerb) bool { return v.name == args[0] })
	if i < 0 {
		var known []string
		for _, v := range userVerbs {
			known = append(known, v.name)
		}
		return fail(userUsageError{fmt.Sprintf("%s is no verb; %s", configQuote(args[0]), nearestWord(args[0], known))})
	}
	v := &userVerbs[i]
	c := &userCommand{stdin: stdin, stdout: stdout, stderr: stderr, edits: map[string]string{}, shares: map[string]string{}}
	switch err := c.parse(v, args[1:]); {
	case errors.Is(err, errUserHelp):
		v.help(stdout)
		return 0
	case err != nil:
		return fail(userUsageError{fmt.Sprintf("%s: %v\n\"berth user %s -h\" tells the flags", v.name, err, v.name)})
	}
	if err := c.open(); err != nil {
		return fail(err)
	}
	if err := v.run(c); err != nil {
		return fail(err)
	}
	return 0
}

// --- flags ---

// userFlag is a flag that sets a key. value turns the word into TOML; "" removes the
// key, so that its default holds. The files' own check comes after that, so value
// checks only what it must to write valid TOML and to blame the flag.
type userFlag struct {
	name, arg, key, help string
	value                func(word string) (string, error)
}

var userFlags = []userFlag{
	{"quota", "SIZE", "quota_bytes", `bytes the user may store, as 2GiB; 0 for no limit; "filesystem" leaves it to the kernel`, func(word string) (string, error) { return userScalar(word, new(byteSize)) }},
	{"files", "N", "quota_files", "files the user may store; 0 for no limit", userNumber},
	{"home", "DIR", "home", `the directory he sees as /; "" for homes/NAME in the state directory`, userString},
	{"permissions", "LIST", "permissions", "of " + permAll.String(), userPermissions},
	{"commands", "LIST", "commands", "named commands he may run", userList},
	{"shell-path", "PATH", "shell_path", `what runs his command lines; "" for /bin/sh`, userString},
	{"profile", "NAME", "profile", `camera, scanner or strict: sets the keys that the file does not; "" for none`, userString},
	{"tls", "WORD", "tls", `required; optional for a device that cannot do TLS; always, also on this machine; "" for the default`, userString},
	{"quirks", "LIST", "quirks", `deviations that a device needs, of ` + strings.Join((quirk(1)<<len(quirkTable)-1).names(), ", ") + `; these alone, also with a profile`, userQuirks},
	{"allow-from", "LIST", "allow_from", `networks he may come from, as 10.0.0.0/8; "" for all`, userNetworks},
	{"sessions", "N", "sessions", "sessions at once", userNumber},
	{"download-rate", "SIZE", "download_rate", "bytes a second, as 500kB; 0 for no limit", func(word string) (string, error) { return userScalar(word, new(byteSize)) }},
	{"upload-rate", "SIZE", "upload_rate", "bytes a second; 0 for no limit", func(word string) (string, error) { return userScalar(word, new(byteSize)) }},
	{"when-full", "WORD", "when_full", "reject, or rotate to delete his oldest files", userString},
	{"expire", "TIME", "expire", "delete files older than that, as 30d; 0 for never", func(word string) (string, error) { return userScalar(word, new(duration)) }},
	{"uid", "N", "uid", `uid that logs in through the local socket; "" for none`, userNumber},
	{"on-upload", "NAME", "on_upload", `named command to run after each upload; "" for none`, userString},
}

// userScalar reads a size or a time by the type's own rules and writes it as it was put.
func userScalar(word string, into interface{ UnmarshalText([]byte) error }) (string, error) {
	if err := into.UnmarshalText([]byte(word)); err != nil {
		return "", err
	}
	return tomlString(word), nil
}

func userNumber(word string) (string, error) {
	if word == "" {
		return "", nil
	}
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil || n < 0 {
		return "", errorf("%s is not a number; write it like 1000", configQuote(word))
	}
	return strconv.FormatInt(n, 10), nil
}

func userString(word string) (string, error) {
	if word == "" {
		return "", nil
	}
	if !utf8.ValidString(word) {
		return "", errorf("%s is not UTF-8, which a user file must be", configQuote(word))
	}
	return tomlString(word), nil
}

func userList(word string) (string, error) {
	var items []string
	for item := range strings.SplitSeq(word, ",") {
		if item = strings.TrimSpace(item); item != "" {
			text, err := userString(item)
			if err != nil {
				return "", err
			}
			items = append(items, text)
		}
	}
	return "[" + strings.Join(items, ", ") + "]", nil
}

func userPermissions(word string) (string, error) {
	for item := range strings.SplitSeq(word, ",") {
		if item = strings.TrimSpace(item); item != "" {
			if _, err := parsePermission(item); err != nil {
				return "", err
			}
		}
	}
	return userList(word)
}

func userQuirks(word string) (string, error) {
	for item := range strings.SplitSeq(word, ",") {
		if item = strings.TrimSpace(item); item != "" {
			if _, err := parseQuirk(item); err != nil {
				return "", err
			}
		}
	}
	return userList(word)
}

func userNetworks(word string) (string, error) {
	for item := range strings.SplitSeq(word, ",") {
		if item = strings.TrimSpace(item); item != "" {
			if err := new(network).UnmarshalText([]byte(item)); err != nil {
				return "", err
			}
		}
	}
	return userList(word)
}

// tomlString is s as a basic string of TOML.
func tomlString(s string) string {
	var b builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// flags is what v takes, filling c.
func (c *userCommand) flags(v *userVerb) userSwitches {
	var set userSwitches
	c.configPath = defaultConfigPath
	set.text(&c.configPath, "config", "`FILE` with the daemon's configuration")
	if v.json {
		set.toggle(&c.json, "json", "print JSON")
	}
	if v.all {
		set.add("sort", "`BY`: name, or used for who stores most first", func(word string) error {
			if c.sort = word; word != "name" && word != "used" {
				return errorf("%s is neither name nor used", configQuote(word))
			}
			return nil
		})
	}
	if v.password {
		set.toggle(&c.passwordStdin, "password-stdin", "read the password from standard input, one line")
		set.text(&c.passwordHash, "password-hash", "take over a hash from another password file: `HASH` is one of "+acceptedSchemes)
		if v.settings {
			set.toggle(&c.noPassword, "no-password", "no password logs in, only certificates or the local socket")
		}
	}
	if !v.settings {
		return set.sorted()
	}
	for _, f := range userFlags {
		set.add(f.name, "`"+f.arg+"`: "+f.help, func(word string) error {
			if f.name == "quota" {
				c.edits["quota"] = ""
				if word == "filesystem" {
					c.edits["quota"], c.edits["quota_bytes"], c.edits["quota_files"] = tomlString(word), "", ""
					return nil
				}
			}
			text, err := f.value(word)
			c.edits[f.key] = text
			return err
		})
	}
	var certificates []string
	set.add("certificate", "`FINGERPRINT`: sha256:... of a client certificate that logs in as the user; may be repeated, and replaces those there were", func(word string) error {
		if word != "" {
			fp, err := normalFingerprint(word)
			if err != nil {
				return err
			}
			certificates = append(certificates, fp)
		}
		text, err := userList(strings.Join(certificates, ","))
		c.edits["certificates"] = text
		return err
	})
	set.add("share", "`NAME=PATH[:rw]`: show a directory as /NAME, read-only without :rw; no PATH takes it away; may be repeated", func(word string) error {
		name, path, ok := cutText(word, "=")
		if !ok {
			return errorf("%s has no \"=\"; write public=/srv/public or public=/srv/public:rw", configQuote(word))
		}
		if !utf8.ValidString(word) {
			return errorf("%s is not UTF-8, which a user file must be", configQuote(word))
		}
		c.shares[name] = path
		return checkShareName(name)
	})
	toggle := func(name, key, value, help string) {
		set.add(name, help, func(word string) error {
			on, err := strconv.ParseBool(word)
			if err != nil {
				return errorf("%s is not a yes or no; leave it out, or write =true or =false", configQuote(word))
			}
			c.edits[key] = strconv.FormatBool(on == (value == "true"))
			return nil
		})
	}
	toggle("shell", "shell", "true", "any command line, inside the sandbox; --shell=false takes it back")
	toggle("disabled", "disabled", "true", "refuse every login")
	toggle("enabled", "disabled", "false", "take --disabled back")
	return set.sorted()
}

// parse reads flags and the name, in any order.
func (c *userCommand) parse(v *userVerb, args []string) error {
	set := c.flags(v)
	var names []string
	for {
		rest, err := set.parse(args)
		if err != nil {
			return err
		}
		if len(rest) == 0 {
			break
		}
		names = append(names, rest[0])
		args = rest[1:]
	}
	switch {
	case v.nameless && len(names) > 0:
		return errorf("takes no name, got %s", configQuote(names[0]))
	case v.nameless, v.all && len(names) == 0:
		return nil
	case len(names) == 0:
		return errorf("which user? write berth user %s NAME", v.name)
	case len(names) > 1:
		return errorf("one user at a time, got %s and %s", configQuote(names[0]), configQuote(names[1]))
	}
	c.name = names[0]
	ways := 0
	for _, given := range []bool{c.passwordStdin, c.passwordHash != "", c.noPassword} {
		if given {
			ways++
		}
	}
	if ways > 1 {
		return newError("give only one of --password-stdin, --password-hash and --no-password")
	}
	return checkUserName(c.name)
}

// help prints the usage of v.
func (v *userVerb) help(w io.Writer) {
	name := " NAME"
	if v.nameless {
		name = ""
	} else if v.all {
		name = " [NAME]"
	}
	fmt.Fprintf(w, "Usage: berth user %s%s [flags]\n\n%s\n\n", v.name, name, v.purpose)
	for _, f := range new(userCommand).flags(v) {
		fmt.Fprintf(w, "  %s\n        %s\n", f.form(), f.help)
	}
	fmt.Fprintf(w, "\nExample:\n  %s\n", v.example)
}

// --- verbs ---

// open finds the users directory.
func (c *userCommand) open() error {
	cfg, err := loadConfig(c.configPath)
	if err != nil {
		return err
	}
	c.users = &users{
		dir: filepath.Clean(cfg.Server.UsersDir), stateDir: filepath.Clean(cfg.Server.StateDir),
		log: slog.New(slog.DiscardHandler),
	}
	c.users.current.Store(newUserSet(nil))
	c.local = cfg.Listen.Local
	return nil
}

func (c *userCommand) add() error {
	unlock, err := c.lock(true)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(c.users.path(c.name)); err == nil {
		return errorf("user %q exists already; change him with berth user set or passwd", c.name)
	}
	// All that can be wrong is said before a password is asked for.
	start := []byte("# A user of berth. \"berth user set " + c.name + "\" changes it, and so may you.\n")
	if _, err := c.edited(start); err != nil {
		return err
	}
	if !c.noPassword {
		if err := c.newPassword(); err != nil {
			return err
		}
	}
	if err := c.write(start); err != nil {
		return err
	}
	u, errs := c.users.readEntry(c.name)
	if len(errs) > 0 {
		return errs
	}
	fmt.Fprintf(c.stdout, "added user %s, home %s\n", c.name, u.user.Home)
	return nil
}

func (c *userCommand) passwd() error {
	return c.change(func() error { return c.newPassword() }, "new password for user %s\n")
}

// scan has the running daemon count, and counts itself where none runs.
func (c *userCommand) scan() error {
	e, errs := c.users.readEntry(c.name)
	if len(errs) > 0 {
		return errs
	}
	if e == nil {
		return errorf("there is no user %q in %s", c.name, c.users.dir)
	}
	u := e.user
	if u.Quota == "filesystem" {
		return errorf("user %q has quota = \"filesystem\": the kernel counts, and berth does not", c.name)
	}
	for _, socket := range c.local {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			continue
		}
		defer conn.Close()
		return c.scanOnline(conn)
	}
	if err := os.MkdirAll(c.users.stateDir, 0o700); err != nil {
		return err
	}
	l := newLedger(c.users.stateDir, slog.New(slog.DiscardHandler))
	defer l.close()
	if l.lock == nil && !errors.Is(l.noLock, syscall.EWOULDBLOCK) {
		return errorf("the ledger cannot be written: %w", l.noLock)
	}
	if l.lock == nil {
		return errorf("berth runs, and does not answer on its local socket (listen.local is %q)", c.local)
	}
	if _, err := os.Stat(u.Home); err != nil {
		return err
	}
	all, err := loadUsers(c.users.dir, c.users.stateDir, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	j, err := newJailSet(l).enter(all.jailSpec(u))
	if err != nil {
		return err
	}
	s := &sweep{j: j, pace: func() error { return nil }}
	was, is, _, err := s.count()
	if err != nil {
		return err
	}
	fmt.Fprintln(c.stdout, scanResult(c.name, was, is))
	homes := map[string]string{}
	for _, u := range all.all() {
		homes[u.Name] = u.Home
	}
	return l.save(homes, l.clean)
}

// scanOnline asks the daemon at the other end of its local socket.
func (c *userCommand) scanOnline(conn net.Conn) error {
	r := bufio.NewReader(conn)
	answer := func() (code, text string, err error) {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return "", "", errorf("the daemon hung up: %w", err)
			}
			if line = strings.TrimRight(line, "\r\n"); len(line) > 3 && line[3] == ' ' {
				return line[:3], line[4:], nil
			}
		}
	}
	if code, text, err := answer(); err != nil || code != "220" {
		return cmp.Or(err, errorf("the daemon said %s %s", code, text))
	}
	fmt.Fprintf(conn, "SITE SCAN %s\r\n", c.name)
	code, text, err := answer()
	if err != nil {
		return err
	}
	if code != "211" {
		return errorf("the daemon said: %s", text)
	}
	fmt.Fprintln(c.stdout, text)
	fmt.Fprint(conn, "QUIT\r\n")
	return nil
}

func (c *userCommand) set() error {
	if len(c.edits)+len(c.shares) == 0 {
		return userUsageError{fmt.Sprintf("set: nothing to change; write for example berth user set %s --quota 2GiB", c.name)}
	}
	return c.change(func() error { return nil }, "changed user %s; it holds from his next login\n")
}

// change rewrites the file of a user that exists.
func (c *userCommand) change(prepare func() error, done string) error {
	unlock, err := c.lock(false)
	if err != nil {
		return err
	}
	defer unlock()
	data, err := c.read()
	if err != nil {
		return err
	}
	if err := prepare(); err != nil {
		return err
	}
	if err := c.write(data); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, done, c.name)
	return nil
}

func (c *userCommand) del() error {
	unlock, err := c.lock(false)
	if err != nil {
		return err
	}
	defer unlock()
	home := filepath.Join(c.users.stateDir, "homes", c.name)
	data, err := c.read()
	if err != nil {
		return err
	}
	if u, errs := parseUserFile(c.users.path(c.name), c.name, data, c.users.dir, c.users.stateDir); !errs.has("home") {
		home = u.Home
	}
	if err := os.Remove(c.users.path(c.name)); err != nil {
		return err
	}
	if err := syncUserDir(c.users.dir); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "removed user %s; his files stay in %s; sessions he has open go on until they end\n", c.name, home)
	return nil
}

// userSummary is what list tells of a user, and the names of its JSON.
type userSummary struct {
	Name        string   `json:"name"`
	Home        string   `json:"home"`
	QuotaBytes  int64    `json:"quota_bytes"`
	QuotaFiles  int64    `json:"quota_files"`
	Permissions []string `json:"permissions"`
	TLS         string   `json:"tls"`
	Disabled    bool     `json:"disabled"`
}

func (c *userCommand) list() error {
	set, errs := c.users.readAll()
	all := set.sorted()
	if c.json {
		summaries := []userSummary{}
		for _, u := range all {
			summaries = append(summaries, userSummary{u.Name, u.Home, int64(u.QuotaBytes), u.QuotaFiles, u.Permissions.names(), u.TLS, u.Disabled})
		}
		if err := c.printJSON(summaries); err != nil {
			return err
		}
	} else {
		rows := [][]string{{"NAME", "HOME", "QUOTA", "FILES", "PERMISSIONS", "TLS", "STATE"}}
		for _, u := range all {
			quota, files, state := cmp.Or(u.Quota, "-"), "-", "enabled"
			if u.QuotaBytes > 0 {
				quota = u.QuotaBytes.String()
			}
			if u.QuotaFiles > 0 {
				files = strconv.FormatInt(u.QuotaFiles, 10)
			}
			if u.Disabled {
				state = "disabled"
			}
			rows = append(rows, []string{u.Name, u.Home, quota, files, cmp.Or(u.Permissions.String(), "-"), u.TLS, state})
		}
		if _, err := io.WriteString(c.stdout, columns(rows)); err != nil {
			return err
		}
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// columns sets rows of equally many cells below each other, two spaces apart, as
// text/tabwriter would, for 12 KB less of the program. The last cell gets none.
func columns(rows [][]string) string { return columnsApart(rows, 2) }

func columnsApart(rows [][]string, gap int) string {
	var b builder
	for _, row := range rows {
		last := len(row) - 1
		for i, cell := range row[:last] {
			screenPad(&b, cell, tableCells(rows, i)+gap)
		}
		b.WriteString(row[last] + "\n")
	}
	return b.String()
}

// tableCells is how wide a column of rows is.
//
//go:noinline
func tableCells(rows [][]string, column int) (cells int) {
	for _, row := range rows {
		cells = max(cells, screenCells(row[column]))
	}
	return cells
}

// userSetting is one line of show: a key, its value as TOML, and as JSON.
type userSetting struct {
	key   string
	toml  string
	value any
}

func (c *userCommand) show() error {
	data, err := c.read()
	if err != nil {
		return err
	}
	u, errs := parseUserFile(c.users.path(c.name), c.name, data, c.users.dir, c.users.stateDir)
	if len(errs) > 0 {
		return errs
	}
	settings := u.settings()
	at := positionsOf(trimBOM(data))
	from := map[string]string{}
	for _, s := range settings {
		_, own := at[s.key]
		from[s.key] = u.origin(s.key, own)
	}
	if c.json {
		object := map[string]any{"name": u.Name, "from": from}
		for _, s := range settings {
			object[s.key] = s.value
		}
		return c.printJSON(object)
	}
	fmt.Fprintf(c.stdout, "# %s; what is not in it says where it is from\n", c.users.path(c.name))
	for _, s := range settings {
		if s.toml == "" {
			continue
		}
		where := ""
		if from[s.key] != "file" {
			where = "  # " + from[s.key]
		}
		fmt.Fprintf(c.stdout, "%-13s = %s%s\n", s.key, s.toml, where)
	}
	return nil
}

// settings is every key of u in the order of userKeys, the password by its scheme only.
func (u *user) settings() []userSetting {
	scheme := "none"
	switch {
	case u.hash != nil:
		scheme = u.hash.scheme
	case u.Password != "":
		scheme = "locked"
	}
	text := func(key, s string) userSetting { return userSetting{key, tomlString(s), s} }
	number := func(key string, n int64) userSetting { return userSetting{key, strconv.FormatInt(n, 10), n} }
	list := func(key string, items []string) userSetting {
		quoted := []string{}
		for _, item := range items {
			quoted = append(quoted, tomlString(item))
		}
		return userSetting{key, "[" + strings.Join(quoted, ", ") + "]", append([]string{}, items...)}
	}
	size := func(key string, n byteSize) userSetting { return userSetting{key, tomlString(n.String()), int64(n)} }
	truth := func(key string, b bool) userSetting { return userSetting{key, strconv.FormatBool(b), b} }
	var networks []string
	for _, n := range u.AllowFrom {
		networks = append(networks, n.String())
	}
	uid := userSetting{"uid", "", nil}
	if u.UID != nil {
		uid = number("uid", int64(*u.UID))
	}
	shares := map[string]any{}
	for name, s := range u.Shares {
		shares[name] = map[string]any{"path": s.Path, "write": s.Write}
	}
	profile := userSetting{"profile", "", nil}
	if u.Profile != "" {
		profile = text("profile", u.Profile)
	}
	quota := userSetting{"quota", "", nil}
	if u.Quota != "" {
		quota = text("quota", u.Quota)
	}
	return []userSetting{
		text("password", scheme), list("certificates", u.Certificates), text("home", u.Home), quota,
		size("quota_bytes", u.QuotaBytes), number("quota_files", u.QuotaFiles), list("permissions", u.Permissions.names()),
		list("commands", u.Commands), truth("shell", u.Shell), text("shell_path", u.ShellPath), profile, text("tls", u.TLS),
		list("quirks", u.Quirks.names()), list("allow_from", networks),
		number("sessions", int64(u.Sessions)), size("download_rate", u.DownloadRate), size("upload_rate", u.UploadRate),
		text("when_full", u.WhenFull), text("expire", u.Expire.String()), uid,
		{"shares", tomlShares(u.Shares), shares}, text("on_upload", u.OnUpload), truth("disabled", u.Disabled),
	}
}

func (c *userCommand) printJSON(v any) error {
	e := json.NewEncoder(c.stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// newPassword puts the hash of a new password, wherever it comes from, into the edits.
func (c *userCommand) newPassword() error {
	if c.passwordHash != "" {
		if h, err := parsePassword(c.passwordHash); err != nil || h == nil {
			return userUsageError{fmt.Sprintf("--password-hash: %v", cmp.Or(err, newError("locked, so no password would log in; use --no-password or --disabled")))}
		}
		c.edits["password"] = tomlString(c.passwordHash)
		return nil
	}
	password, err := c.readPassword()
	if err != nil {
		return err
	}
	if err := checkPassword(password); err != nil {
		return err
	}
	if len(password) < shortPassword {
		fmt.Fprintf(c.stderr, "berth user: warning: a password of %d characters is soon guessed; take %d or more\n", len(password), shortPassword)
	}
	hash, err := hashPassword(password)
	if err != nil {
		return err
	}
	c.edits["password"] = tomlString(hash)
	return nil
}

func (c *userCommand) readPassword() (string, error) {
	if c.passwordStdin {
		// One byte more than may be, so that a longer one is refused and not cut.
		line, err := bufio.NewReader(io.LimitReader(c.stdin, maxPassword+3)).ReadString('\n')
		if err != nil && err != io.EOF {
			return "", errorf("read the password from standard input: %w", err)
		}
		return strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), nil
	}
	f, ok := c.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", userUsageError{"standard input is no terminal to ask for a password on; use --password-stdin"}
	}
	// Raw mode and not term.ReadPassword, which leaves the echo off when Ctrl-C ends
	// the program in the middle.
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return "", errorf("set up the terminal: %w; use --password-stdin", err)
	}
	defer term.Restore(int(f.Fd()), state)
	t := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{f, c.stderr}, "")
	password, err := t.ReadPassword("Password for " + c.name + ": ")
	if err == nil && checkPassword(password) == nil {
		var again string
		if again, err = t.ReadPassword("The same again: "); err == nil && again != password {
			return "", newError("the two passwords differ; nothing was changed")
		}
	}
	if err == io.EOF { // Ctrl-C or Ctrl-D
		return "", newError("no password given; nothing was changed")
	}
	return password, err
}
