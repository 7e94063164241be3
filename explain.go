// explain.go is berth check --explain: what the daemon decides about one user from one
// address, step by step in the daemon's own order, with the key and the line that
// decide. It is apart from the files that decide because it does none of it: it calls
// what they call (filterDecides, barred, clearTaken, under, tells ...) and puts it into
// words, so that what it says cannot be another thing than what happens. What no file
// tells, bans and who is there, the daemon is asked for, if it runs.

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var explainOption = option{name: "explain", help: "tell what is decided about a user, and why"}

const explainForm = "write berth check --explain user=ann from=10.0.0.7"

// An explanation is all that is decided about a user from an address. The names are those
// of --json.
type explanation struct {
	User    string        `json:"user"`
	From    string        `json:"from"`
	Allowed bool          `json:"allowed"`
	Clear   bool          `json:"clear"`        // with his password in clear text
	TLS     bool          `json:"tls"`          // with TLS, by whatever proof
	Asked   bool          `json:"daemon_asked"` // and what it told is in the steps
	Verdict string        `json:"verdict"`
	Steps   []explainStep `json:"steps"`

	cfg       *config
	cfgFile   string
	cfgAt     configPositions
	userFile  string
	userAt    configPositions
	u         *user    // as he is from there; nil: there is none
	known     []string // users
	rulePlace string   // of the network's profile
	refusal   string
}

// An explainStep is one decision. Key and where are of what decides; where is a default's
// if the file does not say it.
type explainStep struct {
	Step  string `json:"step"`
	Text  string `json:"text"`
	Key   string `json:"key,omitempty"`
	Where string `json:"where,omitempty"`
}

// runExplain is berth check --explain.
func runExplain(inv *invocation) error {
	name, peer, from := "", netip.AddrFrom4([4]byte{127, 0, 0, 1}), false
	for _, arg := range inv.args {
		key, value, _ := cutText(arg, "=")
		var err error
		switch {
		case key == "user" && name != "", key == "from" && from:
			return usageErr("%s= is there twice; %s", key, explainForm)
		case key == "user" && value != "" && !strings.ContainsAny(value, ",= "): // user=ann,from=… is no name
			name = value
		case key == "from" && value == "local":
			peer, from = netip.Addr{}, true
		case key == "from" && value != "":
			if peer, err = netip.ParseAddr(value); err != nil {
				return usageErr("%s is no address: write one, as from=10.0.0.7 or from=2001:db8::7, or from=local", configQuote(arg))
			}
			peer, from = peer.Unmap().WithZone(""), true
		default:
			return usageErr("%s is neither user=NAME nor from=ADDRESS; %s", configQuote(arg), explainForm)
		}
	}
	if name == "" {
		return usageErr("which user, and from where? %s", explainForm)
	}
	cfg, path, err := inv.configured()
	if err != nil {
		return err
	}
	e := &explanation{User: name, From: addrText(peer), cfg: cfg, cfgFile: path, cfgAt: positionsIn(path)}
	us := &users{dir: filepath.Clean(cfg.Server.UsersDir), stateDir: filepath.Clean(cfg.Server.StateDir), log: slog.New(slog.DiscardHandler)}
	set, errs := us.readAll()
	if checkUserName(name) == nil {
		e.userFile = us.path(name)
		e.userAt = positionsIn(e.userFile)
	}
	var own configErrors
	for _, problem := range errs {
		if problem.File == e.userFile || problem.File == us.dir {
			own = append(own, problem)
		}
	}
	if len(own) > 0 {
		fmt.Fprintln(inv.stderr, own)
		return exitWith(exitFailed)
	}
	us.current.Store(set)
	for name := range set.entries {
		e.known = append(e.known, name)
	}
	slices.Sort(e.known)
	var base *user
	if entry := set.entries[name]; entry != nil {
		base = entry.user
	}
	e.decide(base, peer)
	if inv.on("json") {
		inv.stdout.Write(append(encodeJSON(e), '\n'))
	} else {
		for _, s := range e.Steps {
			from := s.Key
			if s.Where != "" {
				from += ", " + s.Where
			}
			if from != "" {
				from = " [" + from + "]"
			}
			fmt.Fprintf(inv.stdout, "%-12s %s\n", s.Step, inv.fold(s.Text+from, 13))
		}
		fmt.Fprintln(inv.stdout, inv.fold(e.Verdict, 0))
	}
	if !e.Allowed {
		return exitWith(exitFailed)
	}
	return nil
}

// positionsIn is where the keys of a file are; none of one that cannot be read.
func positionsIn(file string) configPositions {
	data, err := readConfigBytes(file, maxConfigFile)
	if err != nil {
		return nil
	}
	return positionsOf(trimBOM(data))
}

// keyPlace is a key's file and line, or that it is a default.
func keyPlace(file string, at configPositions, key string) string {
	if _, ok := at[key]; ok {
		return fmt.Sprintf("%s:%d", file, at.line(key))
	}
	if list, _, ok := cutText(key, "["); ok && list != key && at.line(key) > 0 {
		return fmt.Sprintf("%s:%d", file, at.line(key))
	}
	return "default"
}

// add is a step that no key decides. Not inlined, nor are the next three, as usageErr.
//
//go:noinline
func (e *explanation) add(step, format string, args ...any) { e.step("", "", step, format, args) }

//go:noinline
func (e *explanation) step(key, where, step, format string, args []any) {
	e.Steps = append(e.Steps, explainStep{step, fmt.Sprintf(format, args...), key, where})
}

// by is add with a key of berth.toml.
//
//go:noinline
func (e *explanation) by(step, key, format string, args ...any) {
	e.step(key, keyPlace(e.cfgFile, e.cfgAt, key), step, format, args)
}

// own is add with a key of the user's file, or of a profile.
//
//go:noinline
func (e *explanation) own(step, key, format string, args ...any) {
	where := keyPlace(e.userFile, e.userAt, key)
	if where == "default" {
		where = e.u.origin(key, false)
		switch bit := keyBit(key); {
		case bit&e.u.preset != 0:
			where += ", " + keyPlace(e.userFile, e.userAt, "profile")
		case bit&e.u.network != 0:
			where += ", " + e.rulePlace
		}
	}
	e.step(key, where, step, format, args)
}

// refuse notes why there is no login; the first reason is the verdict's.
//
//go:noinline
func (e *explanation) refuse(format string, args ...any) {
	if e.refusal == "" {
		e.refusal = fmt.Sprintf(format, args...)
	}
}

// decide walks through what happens from the connection to the login, and then through
// what holds for the session.
func (e *explanation) decide(base *user, peer netip.Addr) {
	e.connection(peer)
	c := &e.cfg.Profiles
	nearby := peer.IsLoopback()
	clear := true
	if base == nil {
		text := "there is no user " + configQuote(e.User) + " in " + e.cfg.Server.UsersDir
		if err := checkUserName(e.User); err != nil {
			text = err.Error()
		}
		if near := nearestWord(e.User, e.known); beginsWith(near, "did") { // and not all of a thousand
			text += "; " + near
		}
		e.add("user", "%s", text)
		e.refuse("there is no such user; make one with berth user add NAME")
		e.profiles(nil, peer)
	} else {
		u := c.under(base, peer)
		e.u = u
		e.add("user", "%s is in %s", u.Name, e.userFile)
		e.profiles(u, peer)
		if peer.IsValid() {
			clear = e.tlsRule(u, nearby)
		}
		e.login(base, u, peer)
		e.holds(u, peer, nearby)
	}
	e.ask(peer)
	e.conclude(base, peer, clear)
}

// connection is what is decided before a byte was read.
func (e *explanation) connection(peer netip.Addr) {
	cfg := e.cfg
	if !peer.IsValid() {
		e.by("connection", "listen.local", "by the unix socket, from this machine: %q", cfg.Listen.Local)
		if len(cfg.Listen.Local) == 0 {
			e.refuse("listen.local is empty, so there is no unix socket")
		}
	} else {
		if i := slices.IndexFunc(cfg.Listen.ProxyFrom, func(n network) bool { return n.contains(peer) }); i >= 0 {
			e.by("proxy", fmt.Sprintf("listen.proxy_from[%d]", i), "%s is a proxy: its connections must begin with a PROXY header, and the address in that counts; ask with from= that address", cfg.Listen.ProxyFrom[i])
		}
		allowed, key, at := filterDecides(cfg.Filter, peer)
		switch {
		case at < 0 && allowed:
			e.by("filter", key, "no network is named, so every address is accepted")
		case at < 0:
			e.by("filter", key, "%s is in none of its networks: the connection is refused", e.From)
		default:
			list, word := cfg.Filter.AllowFrom, "accepted"
			if !allowed {
				list, word = cfg.Filter.DenyFrom, "refused"
			}
			e.by("filter", fmt.Sprintf("%s[%d]", key, at), "%s is in %s: the connection is %s", e.From, list[at], word)
		}
		if !allowed {
			e.refuse("%s does not let %s connect", key, e.From)
		}
		l, key, text := cfg.Limits, "limits.login_failures", ""
		switch {
		case peer.IsLoopback():
			text = "this machine is never banned"
		case l.Ban <= 0 || l.LoginFailures <= 0:
			key, text = "limits.ban", "nobody is banned"
		default:
			text = fmt.Sprintf("after %d failed logins within %s banned for as long", l.LoginFailures, l.Ban)
		}
		e.by("bans", key, "%s", text)
	}
	e.by("limits", "limits.sessions_per_address", "at most %d sessions from there, and %d in all", cfg.Limits.SessionsPerAddress, cfg.Limits.Sessions)
}

const allSet = "nothing, since the user's file does"

// profiles are what profiles set, the user's and the network's.
func (e *explanation) profiles(u *user, peer netip.Addr) {
	if u != nil && u.Profile != "" {
		e.own("profile", "profile", "%s sets %s", u.Profile, cmp.Or(findPreset(u.Profile).values.keyText(u.preset), allSet))
	}
	c := &e.cfg.Profiles
	i := c.rule(peer)
	if i < 0 {
		return
	}
	rule, p, key := c.For[i], findPreset(c.For[i].Profile), fmt.Sprintf("profiles.for[%d]", i)
	e.rulePlace = keyPlace(e.cfgFile, e.cfgAt, key)
	set := keySet(0)
	if u == nil {
		set = networkKeys // of nobody, whom a name that does not exist is held for
	} else {
		set = u.network
	}
	e.by("profile", key, "%s from %s sets %s", rule.Profile, rule.Network, cmp.Or(p.values.keyText(set&p.sets), allSet))
}

// tlsRule is whether his password is taken in clear text.
func (e *explanation) tlsRule(u *user, nearby bool) (clear bool) {
	clear, key := clearTaken(u, e.cfg.TLS.Require, nearby)
	text := "a password, and files, only under TLS"
	if clear {
		text = "a password, and files, in clear text too"
	}
	if key == "tls" {
		e.own("tls", key, "%q: %s", u.TLS, text)
		return clear
	}
	where := "another machine"
	if nearby {
		where = "this machine"
	}
	e.by("tls", key, "%q, and %s is %s: %s", e.cfg.TLS.Require, e.From, where, text)
	return clear
}

// login is whether he may log in, and by what.
func (e *explanation) login(base, u *user, peer netip.Addr) {
	switch base.barred(peer) {
	case reasonDisabled:
		e.own("login", "disabled", "every login is refused")
		e.refuse("the user is disabled; berth user set %s --enabled", u.Name)
	case reasonNotAllowed:
		e.own("login", "allow_from", "%s is in none of his networks", e.From)
		e.refuse("allow_from of the user does not have %s", e.From)
	default:
		if i := base.allowRule(peer); i >= 0 {
			e.own("login", fmt.Sprintf("allow_from[%d]", i), "%s is in %s", e.From, base.AllowFrom[i])
		} else {
			e.own("login", "allow_from", "from everywhere")
		}
	}
	if u.hash != nil {
		e.own("login", "password", "with a password (%s)", u.hash.scheme)
	} else {
		e.own("login", "password", "no password logs in")
	}
	if n := len(u.Certificates); n > 0 && peer.IsValid() {
		e.own("login", "certificates", "with a client certificate, of %d", n)
	}
	if u.UID != nil && !peer.IsValid() {
		e.own("login", "uid", "without a password for uid %d", *u.UID)
	}
	if !e.canProve(u, peer) {
		e.refuse("neither a password, a certificate nor a uid logs in as him there; berth user passwd %s", u.Name)
	}
	e.own("sessions", "sessions", "at most %d at once", u.Sessions)
	e.home(u)
}

// canProve tells whether there is anything that logs in as u from there.
func (e *explanation) canProve(u *user, peer netip.Addr) bool {
	return u.hash != nil || peer.IsValid() && len(u.Certificates) > 0 || !peer.IsValid() && u.UID != nil
}

// home is whether it can be opened, which a login needs.
func (e *explanation) home(u *user) {
	var state unix.Stat_t
	daemon := uint32(os.Geteuid()) // whom the state directory belongs to, if there is one
	if unix.Stat(e.cfg.Server.StateDir, &state) == nil {
		daemon = state.Uid
	}
	info, err := os.Stat(u.Home)
	switch {
	case err == nil && !info.IsDir(), errors.Is(err, syscall.ENOTDIR):
		e.own("home", "home", "%s is not a directory, so no login works", u.Home)
		e.refuse("his home %s is not a directory", u.Home)
	case errors.Is(err, fs.ErrNotExist):
		e.own("home", "home", "%s is made at the first login, if uid %d may", u.Home, daemon)
	case err != nil:
		e.own("home", "home", "%s: %v", u.Home, err)
	default:
		text := u.Home
		if owner := info.Sys().(*syscall.Stat_t).Uid; owner != daemon {
			text += fmt.Sprintf(" belongs to uid %d, and the daemon is uid %d and has to write there", owner, daemon)
		}
		e.own("home", "home", "%s", text)
	}
	for _, name := range slices.Sorted(maps.Keys(u.Shares)) {
		s := u.Shares[name]
		text := fmt.Sprintf("/%s is %s, read-only", name, s.Path)
		if s.Write {
			text = fmt.Sprintf("/%s is %s, as his permissions are", name, s.Path)
		}
		if info, err := os.Stat(s.Path); err != nil || !info.IsDir() {
			text += "; it is no directory now, and left out"
		}
		e.own("share", tomlJoinKey("shares", name), "%s", text)
	}
	if len(u.Shares) == 0 {
		e.own("share", "shares", "none")
	}
}

// holds is what holds once he is in.
func (e *explanation) holds(u *user, peer netip.Addr, nearby bool) {
	cfg := e.cfg
	used := ""
	if entries, _, err := readLedger(joinPath(cfg.Server.StateDir, ledgerName)); err == nil {
		for _, entry := range entries {
			if entry.Home == u.Home {
				used = fmt.Sprintf("; %s in %d files when the ledger was written", byteSize(entry.Bytes), entry.Files)
			}
		}
	}
	switch {
	case u.Quota != "":
		e.own("quota", "quota", "the kernel's")
	case u.limit() == (quota{}):
		e.own("quota", "quota_bytes", "no limit%s", used)
	default:
		text := make([]string, 0, 2)
		if u.QuotaBytes > 0 {
			text = append(text, u.QuotaBytes.String())
		}
		if u.QuotaFiles > 0 {
			text = append(text, itoa(int(u.QuotaFiles))+" files")
		}
		key := "quota_bytes"
		if u.QuotaBytes == 0 {
			key = "quota_files"
		}
		e.own("quota", key, "%s%s", strings.Join(text, ", "), used)
	}
	if u.limit() != (quota{}) || u.WhenFull != "reject" {
		e.own("quota", "when_full", "%s, when it is full", u.WhenFull)
	}
	if u.Expire > 0 {
		e.own("quota", "expire", "files older than %s are removed", u.Expire)
	}
	may := "he may " + orNone(u.Permissions.names())
	if not := permAll &^ u.Permissions; not != 0 {
		may += "; not " + strings.Join(not.names(), ", ")
	}
	e.own("permissions", "permissions", "%s", may)
	for _, name := range u.Commands {
		c, ok := cfg.Commands[name]
		text := strings.Join(c.Run, " ")
		switch err := sandboxProblem(cfg.Exec.Sandbox); {
		case !ok:
			text = "is not in [commands]: berth does not start so"
		case cfg.Exec.Runner != "":
			text += ", by the runner"
		case err != nil:
			text += ", is refused: " + err.Error()
		case unix.Access(c.Run[0], unix.X_OK) != nil:
			text += ", which cannot be run here"
		}
		e.by("command", tomlJoinKey("commands", name), "%s: %s", name, text)
	}
	if u.Shell {
		e.own("command", "shell", "any command line, by %s", userShell(u))
	} else if len(u.Commands) == 0 {
		e.own("command", "commands", "none")
	}
	if (u.Shell || len(u.Commands) > 0) && peer.IsValid() && !execInClear(u, peer, nearby) {
		e.add("command", "commands only under TLS")
	}
	if u.OnUpload != "" {
		e.own("command", "on_upload", "%s after each upload", u.OnUpload)
	}
	for _, r := range []struct {
		key string
		n   byteSize
	}{{"download_rate", u.DownloadRate}, {"upload_rate", u.UploadRate}} {
		rate := "no limit"
		if r.n > 0 {
			rate = r.n.String() + " a second"
		}
		e.own("rate", r.key, "%s: %s", r.key, rate)
	}
	if peer.IsValid() {
		tell, key := cfg.Passive.tells(peer)
		switch a, err := netip.ParseAddr(tell); {
		case tell == "", err == nil && !a.Is4():
			tell = "the one that his control connection reached"
		case err != nil:
			tell += ", which is looked up then"
		}
		e.by("passive", key, "PASV tells %s", tell)
		e.by("passive", "passive.ports", "data connections come to ports %q", cfg.Passive.Ports)
	}
	e.own("quirks", "quirks", "%s", orNone(u.Quirks.names()))
	switch idle := cfg.Limits.Idle; {
	case u.Quirks&quirkKeepOpen != 0:
		e.own("idle", "quirks", "a session stays, by keep-open")
	case idle <= 0:
		e.by("idle", "limits.idle", "a session stays")
	default:
		e.by("idle", "limits.idle", "a session ends after %s without a command or a transfer", idle)
	}
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "nothing"
	}
	return strings.Join(words, ", ")
}

// conclude is the verdict.
func (e *explanation) conclude(u *user, peer netip.Addr, clear bool) {
	if e.refusal != "" {
		e.Verdict = "refused: " + e.refusal
		return
	}
	e.Allowed = true
	e.Clear = clear && u.hash != nil
	e.TLS = peer.IsValid() // the unix socket has none
	how := "with TLS only"
	switch {
	case !peer.IsValid():
		e.Clear, how = u.hash != nil, "by the unix socket"
	case u.hash == nil:
		how = "with TLS and his certificate only"
	case e.Clear:
		how = "with TLS or in clear text"
	}
	e.Verdict = fmt.Sprintf("%s may log in from %s %s", e.User, e.From, how)
}

// --- what only the daemon knows ---

// addressIn is the address that a text names.
//
//go:noinline
func addressIn(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	return a.Unmap().WithZone(""), err
}

// doStanding is the operator's request.
func (s *session) doStanding(q *request) error {
	peer, err := addressIn(q.Text)
	if err != nil && q.Text != "" || q.User == nil {
		return s.badField("standing needs a user, and text is an address, as 10.0.9.4, or nothing.")
	}
	srv, name := s.srv, *q.User
	a := &answer{Code: codeFileStatus, Reason: refusedNow, Text: srv.unwelcome(peer)}
	failed, delay := srv.auth.failures(name, peer)
	u := srv.users.get(name)
	most := srv.under(u, peer).Sessions
	elsewhere := u != nil && u.Quota != "filesystem" && srv.jails.ledger.elsewhere(u.Home)
	info, err := os.Stat(srv.configPath)
	srv.mu.Lock()
	has := 0
	if of := srv.accounts[name]; of != nil {
		has = of.sessions
	}
	switch {
	case a.Text != "":
	case srv.draining:
		a.Text = "It is about to end."
	case has >= most:
		a.Text = fmt.Sprintf("Too many sessions of that user: at most %d.", most)
	default:
		a.Text = srv.full(peer, 0, !peer.IsValid(), 1) // uids have limits of their own
	}
	if a.Text == "" && elsewhere {
		a.Text = "Another berth counted his home when this one tried last, which each login does again; with quota = \"filesystem\" both serve it."
	}
	if a.Text == "" {
		a.Reason = ""
		a.Text = fmt.Sprintf("Nothing bars him now: %d sessions of his, %d from there, %d in all; %d failed logins from there, and one more is answered after %s.", has, srv.byAddr[peer], len(srv.sessions)-1, failed, delay)
	}
	if err == nil && info.ModTime().After(srv.loaded) {
		a.Text += " Its configuration has changed since it was read: berth reload."
	}
	srv.mu.Unlock()
	file, _ := filepath.Abs(srv.configPath)
	a.Text += " It runs with " + file + "."
	s.answer(a)
	return nil
}

// refusedNow is the reason in the answer to standing.
const refusedNow = "refused"

// failures is how many failed logins from there count, and after how long the next one is
// answered.
func (a *authenticator) failures(name string, peer netip.Addr) (points int, delay time.Duration) {
	now, tries := a.now(), 0
	a.mu.Lock()
	defer a.mu.Unlock()
	window := a.window()
	if rec := a.addresses.get(failuresOf(peer, "password")); rec != nil && now.Sub(rec.since) <= window {
		points, tries = rec.points, rec.tries
	}
	if n := a.names.get(logName(name)); n != nil && now.Sub(n.since) <= window {
		tries = max(tries, n.tries)
	}
	return points, failureDelay(tries + 1)
}

// ask has the daemon tell what would happen now. That it does not run, or does not talk to
// who asks, is a step, and no more.
func (e *explanation) ask(peer netip.Addr) {
	address := ""
	if peer.IsValid() {
		address = e.From
	}
	var d *daemonLink
	text, err := "", newError("it is empty")
	if len(e.cfg.Listen.Local) > 0 {
		d, err = dialDaemon(e.cfg.Listen.Local[0])
	}
	if err == nil {
		defer d.close()
		text, err = d.ask(map[string]any{"do": "standing", "user": e.User, "text": address}, nil)
	}
	if err != nil {
		e.by("daemon", "listen.local", "not asked about bans and sessions: %v", err)
		return
	}
	e.Asked = true
	text = shownText(text)
	if e.by("daemon", "listen.local", "%s", text); d.reason == refusedNow {
		e.refuse("the daemon says: %s", text)
	}
}
