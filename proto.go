// proto.go is the control protocol: what a row of the command table says, dispatch
// with all the checks before a handler runs, and the handlers of verbs that need no
// login. The table itself and the handlers of verbs that touch files are in
// proto_files.go and proto_transfer.go: they run only for a user who is logged in,
// which is the line of trust between them. What is said is in reply.go.

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"syscall"
	"time"

	"golang.org/x/time/rate"
)

// --- dispatch ---

// argRule is what a verb wants behind it.
type argRule uint8

const (
	argOptional argRule = iota
	argNone
	argRequired
)

// A command is everything the server knows about one verb: dispatch, the
// checks before it, HELP and FEAT read nothing else.
type command struct {
	verb    string
	arg     argRule
	login   bool       // needs a user
	perm    permission // and all of these
	data    bool       // and a data connection armed by PASV, EPSV, PORT or EPRT
	keep    bool       // leaves REST and RANG as they are
	onBox   bool       // for the operator through the local socket alone, whoever is logged in
	noLogin bool       // the operator needs no login for it
	off     quirk      // with any of these quirks it does not exist
	only    quirk      // and only with this one it does
	syntax  string     // for HELP, behind the verb
	help    string
	feat    func(*session) string // its line in FEAT; "" for none
	run     func(s *session, arg string) error
	class   commandClass // made from the rest, for the metrics
}

// classify tells what kind of work a row of the table is, by its rules.
func (c *command) classify() commandClass {
	switch {
	case c.verb == "USER" || c.verb == "PASS":
		return classLogin
	case c.perm == permList:
		return classList
	case c.data:
		return classTransfer
	case c.login && !c.keep: // those that keep REST set parameters of transfers
		return classFile
	}
	return classOther
}

// handle answers one line. It returns an error only if the session is over.
func (s *session) handle(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	verb = upperASCII(verb)
	s.tapes('C', line)
	c := commandIndex[verb]
	s.idleAt = s.idleDeadline()
	if c == nil {
		s.setVerb("other")
		return s.unknown(verb, line)
	}
	s.setVerb(c.verb)
	began := s.timing()
	if s.srv.debug() {
		shown := arg
		if c.verb == "PASS" || c.verb == "ACCT" {
			shown = "***"
		}
		s.srv.log.Debug("ftp command", "session", s.id, "user", s.userName(), "addr", s.addrText(), "verb", c.verb, "arg", shown)
	}
	err := s.follow()
	if err != nil {
		return err
	}
	code, _, text := 0, "", ""
	if c.login && s.user == nil { // before an argument is looked at
		code, _, text = s.mayNot(true, 0, false, c.verb, arg)
	}
	switch {
	case c.run == nil || s.lacks(c):
		s.reply(codeNotDone, c.verb+" is not available here; HELP lists what is.")
	case code != 0:
		s.reply(code, text)
	case c.arg == argRequired && arg == "":
		s.reply(codeBadArgument, "Usage: "+c.verb+" "+c.syntax)
	case c.arg == argNone && strings.Trim(arg, " ") != "":
		s.reply(codeBadArgument, c.verb+" takes no argument.")
	default:
		if code, _, text := s.mayNot(false, c.perm, false, c.verb, arg); code != 0 {
			s.reply(code, text)
		} else if c.data && !s.arm.armed() {
			s.reply(codeNoData, "Use EPSV, PASV, EPRT or PORT first.")
		} else {
			err = c.run(s, arg)
		}
	}
	if !c.keep {
		s.rest, s.rangeFrom, s.rangeTo = 0, 0, -1
	}
	if c.verb != "RNFR" {
		s.renameFrom = ""
	}
	if c.data && s.arm.armed() { // it was refused before it came to a transfer
		s.flush()
		s.arm.dismiss()
	}
	s.setVerb("")
	s.timed(c.class, began)
	s.idleAt = s.idleDeadline()
	return err
}

func (s *session) setVerb(verb string) {
	s.mu.Lock()
	if s.verb = verb; verb == "" {
		s.restedAt = time.Now()
	}
	s.mu.Unlock()
}

// idleDeadline is when a session that does nothing from now on ends. Before
// login that moment is fixed, so that nobody keeps a session alive by asking
// for HELP.
func (s *session) idleDeadline() time.Time {
	l := s.srv.config().Limits
	if s.user == nil && !s.isOperator { // who needs no login
		return s.started.Add(l.LoginTimeout.std())
	}
	if l.Idle == 0 || s.has(quirkKeepOpen) {
		return time.Now().Add(neverIdle)
	}
	return time.Now().Add(l.Idle.std())
}

// neverIdle is for how long a session may be idle that may be so for ever.
const neverIdle = 10 * 365 * 24 * time.Hour

// refused logs what a user was not allowed to do: verb, and what it was about, which is
// one of path, command and asked.
func (s *session) refused(verb, what, arg string) {
	s.turnedDown(s.userName(), verb, "denied", what, shortened(arg))
}

// turnedDown is the one line about what a session did not get.
//
//go:noinline
func (s *session) turnedDown(user, verb, result string, more ...any) {
	attrs := append([]any{"session", s.id, "user", user, "addr", s.addrText(), "proto", s.proto, "verb", verb, "result", result}, more...)
	s.srv.log.Info("refused", attrs...)
}

// maxLogged bounds what a client can have written into one line of the log.
const maxLogged = 1 << 10

func shortened(text string) string {
	if len(text) > maxLogged {
		return text[:maxLogged] + "…"
	}
	return text
}

// unknown answers a verb that is not in the table. A browser or a web attack
// that reached this port is cut off before its body can hold commands.
func (s *session) unknown(verb, line string) error {
	switch verb {
	case "GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH", "PROPFIND":
		if i := strings.LastIndex(line, " HTTP/"); i > 0 || strings.Contains(line, "://") {
			s.replyNow(codeClosing, "This is an FTP server, not a web server.")
			return errAbuse
		}
	case "HOST:", "USER-AGENT:":
		s.replyNow(codeClosing, "This is an FTP server, not a web server.")
		return errAbuse
	}
	if len(line) > 2 && line[0] == 22 && line[1] == 3 {
		s.replyNow(codeClosing, "This port begins in plain text; use AUTH TLS, or the port for implicit TLS.")
		return errAbuse
	}
	hint := "HELP lists what is."
	switch verb {
	case "GET":
		hint = "Use RETR to get a file."
	case "PUT":
		hint = "Use STOR to put a file."
	case "LS", "DIR":
		hint = "Use STAT or LIST to see a directory."
	case "CD":
		hint = "Use CWD to change the directory."
	case "RM", "DEL":
		hint = "Use DELE to delete a file."
	case "EXIT", "BYE":
		hint = "Use QUIT to leave."
	}
	s.reply(codeUnknown, "That is no command here. "+hint)
	return s.misbehaved(1)
}

// upperASCII folds a-z and nothing else (field rule: high bytes stay).
//
//go:noinline
func upperASCII(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c >= 'a' && c <= 'z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if c := b[i]; c >= 'a' && c <= 'z' {
					b[i] = c - 32
				}
			}
			return string(b)
		}
	}
	return s
}

// --- access control commands ---

func (s *session) cmdUSER(name string) error {
	s.logout("ok")
	s.asked = name
	if left, banned := s.srv.auth.banned(s.peer); banned {
		s.replyNow(codeClosing, fmt.Sprintf("Too many failed logins from your address; try again in %s.", left.Round(time.Second)))
		return errAbuse
	}
	u := s.srv.users.get(name)
	if u != nil {
		// RFC 4217 section 9: a certificate may be all the proof there has to be.
		if fp := s.fingerprint(); fp != "" && u.hasCertificate(fp) && s.srv.auth.allowed(u, s.peer) {
			return s.enter(u, "certificate", codeLoggedInByTLS)
		}
	}
	if u != nil && s.hasUID && u.UID != nil && *u.UID == s.localUID && s.srv.auth.allowed(u, s.peer) {
		return s.enter(u, "local", codeLoggedIn)
	}
	if s.clearRefused(u) {
		s.refusedClear(name)
		s.reply(codeNotLoggedIn, "Passwords are not accepted in clear text from there; use AUTH TLS first.")
		return nil
	}
	s.reply(codeNeedPassword, "Password required.")
	return nil
}

// fingerprint is that of the client's certificate; "" if it has shown none.
func (s *session) fingerprint() string {
	if tc, ok := s.conn.(*tls.Conn); ok {
		return clientFingerprint(tc.ConnectionState())
	}
	return ""
}

// clearText is the result by which the log's limit knows that nobody is logged in.
const clearText = "clear text"

// clearAdvice is for whoever reads in the log that a device was refused.
const clearAdvice = "a device that cannot do TLS needs tls = \"optional\" or profile = \"camera\" for its user, or for its network in [[profiles.for]]"

// refusedClear logs a login that could not even be tried. Whose it is, is only said: it
// may be a camera that needs tls = "optional", or somebody who guesses.
func (s *session) refusedClear(name string) {
	s.turnedDown(logName(name), s.verb, clearText, "advice", clearAdvice)
}

// clearRefused tells whether a password for u must not cross this connection.
// An unknown user is one whose file says nothing, or this would tell who exists.
func (s *session) clearRefused(u *user) bool {
	if s.tls != nil || !s.peer.IsValid() {
		return false
	}
	yes, _ := clearTaken(s.srv.under(u, s.peer), s.srv.config().TLS.Require, s.nearby())
	return !yes
}

func (s *session) cmdPASS(password string) error {
	if s.user != nil {
		s.reply(codeSuperfluous, "Already logged in.")
		return nil
	}
	if s.asked == "" {
		s.reply(codeBadSequence, "Send USER first.")
		return nil
	}
	if s.clearRefused(s.srv.users.get(s.asked)) {
		s.reply(codeNotLoggedIn, "Passwords are not accepted in clear text from there; use AUTH TLS first.")
		return nil
	}
	name := s.asked
	s.asked = ""
	u, err := s.checkPassword(name, password)
	if err != nil || u == nil {
		return err
	}
	return s.enter(u, "password", codeLoggedIn)
}

// checkPassword is the user that name and password are of. Where there is none the
// client has been told, and the error is nil unless the session is over.
func (s *session) checkPassword(name, password string) (*user, error) {
	s.flush()
	held := s.elsewhere()
	u, err := s.srv.auth.verify(s.srv.ctx, name, password, s.peer)
	if err != nil {
		held() // an answer that is held back says nothing of how busy the box is
	}
	switch {
	case err == nil:
		return u, nil
	case errors.Is(err, errBanned):
		s.replyReason(codeClosing, "banned", "Too many failed logins from your address; try again later.")
		s.flush()
		return nil, errAbuse
	case errors.Is(err, errAuthBusy):
		s.replyReason(codeBusy, "busy", "Too many logins at this moment; try again.")
		return nil, nil
	case errors.Is(err, context.Canceled):
		return nil, errDrain
	}
	if s.failures++; s.failures >= failedLimit {
		s.replyReason(codeClosing, "banned", "Too many failed logins, closing.")
		s.flush()
		return nil, errAbuse
	}
	s.replyReason(codeNotLoggedIn, "login", "Login incorrect.")
	return nil, nil
}

// enter logs in and says so.
func (s *session) enter(u *user, method string, code int) error {
	if ok, err := s.login(u, method); !ok {
		return err
	}
	if code == codeLoggedInByTLS {
		s.reply(code, "Logged in by certificate.")
	} else {
		s.reply(code, "Logged in.")
	}
	return nil
}

// unitHint adds to why a directory cannot be opened what to look at where systemd may
// be the reason: under ProtectSystem= and ProtectHome= the modes of the directory look right.
func unitHint(err error) error {
	if os.Getenv("INVOCATION_ID") == "" || !errors.Is(err, syscall.EROFS) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return errorf("%w; it has to belong to the daemon's user, and its unit has to let it in: ReadWritePaths= in a drop-in, below /home BindPaths= too", err)
}

// login is become, and tells the client where that cannot be; err is as denied has it.
func (s *session) login(base *user, method string) (ok bool, err error) {
	if s.late.Load() {
		return false, errDrain // his transfers nobody would wait for
	}
	if no := s.become(base, method); no != nil {
		return false, s.denied(no)
	}
	return true, nil
}

// denied tells who could not log in why; the error is nil unless the session is over.
func (s *session) denied(no *answer) error {
	s.replyReason(no.Code, no.Reason, no.Text)
	if no.Code != codeClosing {
		return nil
	}
	s.flush()
	return errAbuse
}

// become opens the user's files and counts the session as his. Where that cannot be it
// returns what to tell the client, and the log has it.
func (s *session) become(base *user, method string) (no *answer) {
	u := s.srv.under(base, s.peer)
	acc, err := s.srv.enter(u)
	if err != nil {
		s.turnedDown(u.Name, "USER", "too many sessions")
		return &answer{Code: codeClosing, Reason: "busy", Text: fmt.Sprintf("Too many connections for this user: at most %d.", u.Sessions)}
	}
	j, err := s.srv.jails.enter(s.srv.users.jailSpec(u))
	if errors.Is(err, errOtherBerth) { // the log has that one home, and what to do
		s.srv.leave(acc)
		s.turnedDown(u.Name, "USER", "home counted by another berth")
		return &answer{Code: codeClosing, Reason: "busy", Text: "Another server has your home directory and counts what is in it; try again later."}
	}
	if err != nil {
		s.srv.leave(acc)
		s.srv.log.Error("cannot open home", "session", s.id, "user", u.Name, "addr", s.addrText(), "error", unitHint(err))
		return &answer{Code: codeNotLoggedIn, Reason: "home", Text: "Your home directory cannot be opened; the operator finds the reason in the log."}
	}
	for _, err := range j.missing {
		s.srv.log.Warn("share left out", "session", s.id, "user", u.Name, "addr", s.addrText(), "error", unitHint(err))
	}
	s.mu.Lock()
	s.user, s.base, s.account, s.jail, s.method, s.asked = u, base, acc, j, method, ""
	s.cwd, s.renameFrom = "/", ""
	s.reloads = s.srv.reloads.Load() // what is in his file from here on waits for the next one
	s.mu.Unlock()
	if s.tls != nil {
		s.srv.keys.login(s.tls, u.Name)
	}
	if method != "password" { // verify has done it for passwords
		s.srv.auth.succeed(u.Name, s.peer, method)
	}
	s.srv.log.Info("login", "session", s.id, "user", u.Name, "addr", s.addrText(), "proto", s.proto, "method", method)
	return nil
}

// follow has the session's user be what his file says since the last reload
// (contract section 9). A session that he could not begin any more ends.
func (s *session) follow() error {
	now := s.srv.reloads.Load()
	if s.user == nil || s.reloads == now {
		return nil
	}
	s.reloads = now
	base := s.srv.users.get(s.user.Name)
	u := s.srv.under(base, s.peer)
	if base == s.base && sameUser(*u, *s.user) {
		return nil // the profile of his network neither
	}
	if base == nil || !s.srv.auth.allowed(u, s.peer) || s.method != "local" && s.tls == nil && s.clearRefused(base) {
		s.replyReason(codeClosing, "account", "The operator has changed your account; log in again, if you still may.")
		s.flush()
		return errAccount
	}
	was, is := s.srv.users.jailSpec(s.user), s.srv.users.jailSpec(u)
	j := s.jail
	if !reflect.DeepEqual(was, is) {
		var err error
		if j, err = s.srv.jails.enter(is); err != nil {
			s.srv.log.Error("cannot open home", "session", s.id, "user", u.Name, "addr", s.addrText(), "error", unitHint(err))
			s.replyReason(codeClosing, "account", "Your home directory cannot be opened any more; the operator finds the reason in the log.")
			s.flush()
			return errAccount
		}
		s.srv.jails.leave(s.jail)
	}
	s.srv.limits(s.account, u)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.user, s.base, s.jail = u, base, j
	if was.home != is.home {
		s.cwd, s.renameFrom = "/", ""
	}
	return nil
}

// logout ends what the login began; result is how, in the words of the metrics.
func (s *session) logout(result string) {
	if s.user == nil {
		return
	}
	s.srv.log.Info("logout", "session", s.id, "user", s.user.Name, "addr", s.addrText(), "proto", s.proto, "dur", time.Since(s.started).Round(time.Millisecond), "result", result)
	s.srv.jails.leave(s.jail)
	s.srv.leave(s.account)
	if s.tls != nil {
		s.srv.keys.login(s.tls, "")
	}
	s.mu.Lock()
	s.user, s.base, s.account, s.jail = nil, nil, nil, nil
	s.started = time.Now() // who was logged in has the login time anew; a stranger never
	s.mu.Unlock()
}

func (s *session) cmdACCT(string) error {
	s.reply(codeSuperfluous, "No account information is needed.")
	return nil
}

func (s *session) cmdREIN(string) error {
	s.logout("ok")
	s.forget()
	s.reply(codeReady, "Ready for a new user.")
	return nil
}

// forget sets everything that commands have set back to how a session begins.
// What counts against the client stays.
func (s *session) forget() {
	s.asked, s.cwd = "", "/"
	s.ascii, s.modeZ, s.rest, s.allo, s.renameFrom = false, false, 0, -1, ""
	s.facts, s.digest, s.epsvAll = factsAll, 1, false
	s.arm.dismiss()
}

func (s *session) cmdQUIT(string) error {
	s.reply(codeGoodbye, "Goodbye.")
	return errQuit
}

func (s *session) cmdNOOP(string) error {
	s.reply(codeOK, "OK.")
	return nil
}

func (s *session) cmdSYST(string) error {
	s.reply(codeSystem, "UNIX Type: L8")
	return nil
}

func (s *session) cmdHOST(arg string) error {
	if s.user != nil {
		s.reply(codeBadSequence, "HOST comes before USER.")
		return nil
	}
	s.reply(codeReady, "There is one host here.")
	return nil
}

func (s *session) cmdCLNT(string) error {
	s.reply(codeOK, "Noted.")
	return nil
}

func (s *session) cmdLANG(string) error {
	s.reply(codeBadParameter, "Replies are in English only.")
	return nil
}

func (s *session) cmdHELP(arg string) error {
	arg = upperASCII(strings.Trim(arg, " "))
	if arg == "SITE" {
		return s.siteHELP("")
	}
	if arg != "" {
		c := commandIndex[arg]
		if c == nil {
			s.reply(codeBadParameter, "There is no such command; HELP lists them.")
			return nil
		}
		text := c.verb
		if c.syntax != "" {
			text += " " + c.syntax
		}
		s.reply(codeHelp, text+": "+c.help+".")
		return nil
	}
	var lines []string
	row := ""
	for i := range commands {
		c := &commands[i]
		if c.run == nil || s.lacks(c) {
			continue
		}
		row += fmt.Sprintf("%-8s", c.verb)
		if len(row) >= 72 {
			lines = append(lines, strings.TrimRight(row, " "))
			row = ""
		}
	}
	if row != "" {
		lines = append(lines, strings.TrimRight(row, " "))
	}
	s.replyLines(codeHelp, "These commands are known here:", lines, "HELP followed by one of them says more.")
	return nil
}

func (s *session) cmdFEAT(string) error {
	var lines []string
	for i := range commands {
		if f := commands[i].feat; f != nil && commands[i].run != nil && !s.lacks(&commands[i]) {
			if line := f(s); line != "" {
				lines = append(lines, strings.Split(line, "\n")...)
			}
		}
	}
	s.replyLines(codeStatus, "Features:", lines, "End")
	return nil
}

// --- TLS ---

func (s *session) cmdAUTH(arg string) error {
	switch upperASCII(strings.Trim(arg, " ")) {
	case "TLS", "TLS-C", "SSL", "TLS-P": // RFC 4217 section 2 and what came before it
	default:
		s.reply(codeBadParameter, "Use AUTH TLS.")
		return nil
	}
	if s.tls != nil {
		s.reply(codeBadSequence, "TLS is on already.")
		return nil
	}
	if !s.peer.IsValid() {
		s.reply(codeDeniedByRule, "The local socket needs no TLS.")
		return nil
	}
	s.logout("ok")
	was := s.proto
	// Whatever came in clear text may be anybody's. What was pipelined behind AUTH
	// is dropped, never run inside TLS (no STARTTLS injection), and what was said
	// before it, as a TYPE or MODE that spoils uploads, holds no longer.
	s.forget()
	s.pending = nil
	if s.in != nil {
		s.in.reset()
	}
	s.replyNow(codeStartTLS, "Go on with TLS.")
	if err := s.startTLS(false); err != nil {
		return err
	}
	s.srv.metrics.sessionSwitched(was, s.proto)
	return nil
}

// shake gives a handshake its time, which is shorter while the server drains.
func (s *session) shake(begins bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shaking = begins
	end := time.Time{}
	switch {
	case begins && s.draining:
		end = time.Now().Add(min(s.courtesy(), drainGrace))
	case begins:
		end = time.Now().Add(handshakeTime)
	}
	s.bare.SetDeadline(end)
}

// startTLS does the handshake on the control connection.
func (s *session) startTLS(implicit bool) error {
	cfg, id := s.srv.keys.control(s.peer)
	c := tls.Server(s.bare, cfg)
	s.shake(true)
	shaken := s.elsewhere()
	err := c.Handshake()
	shaken()
	s.shake(false)
	s.tapesTLS(c.ConnectionState(), err)
	if err != nil {
		s.srv.keys.end(id)
		attrs := []any{"session", s.id, "addr", s.addrText(), "proto", s.proto, "verb", "AUTH", "result", "TLS handshake", "error", err}
		if oldTLS(err) {
			attrs = append(attrs, "advice", "it offers TLS 1.1 or older, which nobody may use any more (RFC 8996): update its firmware, or set it to plain FTP; "+clearAdvice)
		}
		s.srv.log.Info("refused", attrs...)
		return err
	}
	s.mu.Lock()
	s.conn, s.tls, s.proto = c, id, "ftps"
	s.mu.Unlock()
	s.private = implicit
	s.pbsz = implicit
	return nil
}

// oldTLS tells whether a handshake failed because the client knows no version that is
// spoken here. crypto/tls has no value for it; a test holds its words.
func oldTLS(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "tls: client offered only unsupported versions")
}

func (s *session) cmdPBSZ(arg string) error {
	if s.tls == nil {
		s.reply(codeBadSequence, "PBSZ comes after AUTH TLS.")
		return nil
	}
	for _, c := range arg {
		if c < '0' || c > '9' {
			s.reply(codeBadArgument, "PBSZ takes a number, which is 0 for TLS.")
			return nil
		}
	}
	s.pbsz = true
	s.reply(codeOK, "PBSZ=0")
	return nil
}

func (s *session) cmdPROT(arg string) error {
	if s.tls == nil {
		s.reply(codeBadSequence, "PROT comes after AUTH TLS.")
		return nil
	}
	if !s.pbsz {
		s.reply(codeBadSequence, "PBSZ 0 comes before PROT.")
		return nil
	}
	switch upperASCII(strings.Trim(arg, " ")) {
	case "P":
		s.private = true
		s.reply(codeOK, "Data connections are private.")
	case "C":
		s.private = false
		s.reply(codeOK, "Data connections are in clear text.")
	case "S", "E":
		s.reply(codeBadProtection, "TLS knows PROT P and PROT C only.")
	default:
		s.reply(codeBadParameter, "Use PROT P or PROT C.")
	}
	return nil
}

func (s *session) cmdCCC(string) error {
	s.reply(codeDeniedByRule, "The control connection stays private.")
	return nil
}

// --- OPTS ---

func (s *session) cmdOPTS(arg string) error {
	what, rest, _ := strings.Cut(arg, " ")
	switch upperASCII(what) {
	case "UTF8", "UTF-8":
		s.reply(codeOK, "Names are UTF-8 always, and any other bytes are left as they are.")
	case "MLST":
		return s.optsMLST(rest)
	case "HASH":
		return s.optsHASH(rest)
	case "MODE":
		if s.srv.config().Transfer.ModeZ && strings.HasPrefix(upperASCII(rest), "Z") {
			s.reply(codeOK, "OK.")
			return nil
		}
		fallthrough
	default:
		s.reply(codeBadArgument, "OPTS knows UTF8, MLST and HASH.")
	}
	return nil
}

// optsMLST chooses facts (RFC 3659 section 7.9). Facts that nobody knows are
// left out and not refused.
func (s *session) optsMLST(arg string) error {
	s.facts = 0
	for _, name := range strings.Split(strings.Trim(arg, " "), ";") {
		for i, known := range mlstFactNames {
			if strings.EqualFold(name, known) {
				s.facts |= 1 << i
			}
		}
	}
	text := "MLST OPTS"
	if s.facts != 0 {
		text += " "
		for i, name := range mlstFactNames {
			if s.facts&(1<<i) != 0 {
				text += name + ";"
			}
		}
	}
	s.reply(codeOK, text)
	return nil
}

func (s *session) featMLST() string {
	text := "MLST "
	for i, name := range mlstFactNames {
		text += name
		if s.facts&(1<<i) != 0 {
			text += "*"
		}
		text += ";"
	}
	return text
}

// optsHASH chooses the digest (draft-bryan-ftpext-hash section 4).
func (s *session) optsHASH(arg string) error {
	arg = strings.Trim(arg, " ")
	if arg == "" {
		s.reply(codeOK, digests[s.digest].name)
		return nil
	}
	for i := range digests {
		if strings.EqualFold(arg, digests[i].name) {
			s.digest = i
			s.reply(codeOK, digests[i].name)
			return nil
		}
	}
	s.reply(codeBadArgument, "FEAT lists the digests behind HASH.")
	return nil
}

func (s *session) featHASH() string {
	text := "HASH "
	for i := range digests {
		text += digests[i].name
		if i == s.digest {
			text += "*"
		}
		text += ";"
	}
	return text
}

// limiterFor is the account's limit in one direction, as the user's latest login
// has set it.
func (s *session) limiterFor(upload bool) *rate.Limiter {
	s.srv.mu.Lock()
	defer s.srv.mu.Unlock()
	if upload {
		return s.account.up
	}
	return s.account.down
}

// transferLog is the one line that a transfer leaves in the log, whatever its end.
func (s *session) transferLog(result, direction, path string, bytes int64, dur time.Duration, err error, sum []byte) {
	attrs := []slog.Attr{
		slog.Uint64("session", s.id), slog.String("user", s.userName()), slog.String("addr", s.addrText()),
		slog.String("direction", direction), slog.String("proto", s.proto), slog.String("verb", s.verb), slog.String("path", path),
		slog.Int64("bytes", bytes), slog.Duration("dur", dur.Round(time.Microsecond)), slog.String("result", result),
	}
	if sum != nil {
		attrs = append(attrs, slog.String("sha256", hexText(sum)))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	s.srv.log.LogAttrs(context.Background(), slog.LevelInfo, "transfer", attrs...)
	way := byte('o')
	if direction == "upload" {
		way = 'i'
	}
	s.transferred(way, path, bytes, dur, err == nil)
}

// transferred leaves a line in the transfer log, if there is one.
func (s *session) transferred(way byte, path string, bytes int64, dur time.Duration, complete bool) {
	s.srv.transferLog.add(transferEvent{time: time.Now(), took: dur, host: s.addrText(), bytes: bytes, path: path,
		ascii: s.converting() && way != 'd', direction: way, user: s.userName(), complete: complete})
}

// changed is the one line that a change of names leaves in the log: what was done to
// the path p, and more about it. One that could not be made leaves noChange's.
func (s *session) changed(what, p string, more ...any) {
	s.changedSo(what, p, "ok", more...)
}

// changedSo is changed with the result in other words.
func (s *session) changedSo(what, p, result string, more ...any) {
	attrs := append([]any{"session", s.id, "user", s.userName(), "addr", s.addrText(), "proto", s.proto, "verb", s.verb, "path", p}, more...)
	s.srv.log.Info(what, append(attrs, "result", result)...)
}

// deleted is changed for a file that is gone.
func (s *session) deleted(p string, bytes int64) {
	s.changed("deleted", p, "bytes", bytes)
	s.transferred('d', p, bytes, 0, true)
}
