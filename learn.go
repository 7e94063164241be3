// learn.go records what an unknown device says and what it is answered, for berth learn.
// The daemon itself does it, for sessions of one name or address, while the operator
// waits on the local socket: a camera on the wall keeps its address and its port. It is
// apart from session.go because it listens and changes nothing, and because what may be
// written down is decided here alone: no password, no argument of a verb and no name of
// a user that nobody knows (which may be one, typed into the wrong field), no output of
// commands. What a recording tells is for learn_read.go.

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	maxLessons    = 4         // recordings at once, one for each name
	maxDialogue   = 1 << 20   // bytes of one: hours of a camera
	maxTapeLine   = 300       // of one line
	maxTapeBefore = 8 << 10   // that a session has said before its name is known
	maxEarly      = 8         // sessions that ended before they said a name
	maxLesson     = time.Hour // of one, should its operator be forgotten
)

// lessons are the recordings that run.
type lessons struct {
	active atomic.Int32 // looked at for each session and line

	mu    mutex // guards what follows, and what is in each of them
	list  []*lesson
	early []earlyTape
}

// A lesson is one recording: of the sessions that say a name, or of an address.
type lesson struct {
	name  string
	from  netip.Addr // valid: of all that come from there, whatever name they say
	seen  map[netip.Addr]bool
	out   []byte // not yet fetched
	left  int    // bytes that may still be written down
	ready chan struct{}
}

// A tape is what one session has of it: until it is known whose it is, lines of its own.
type tape struct {
	of     *lesson
	before []byte
	named  bool
	lf     bool // lines that end with LF alone were noted
}

type earlyTape struct {
	from  netip.Addr
	lines []byte
}

// begin starts a recording; one for each name.
func (ls *lessons) begin(name string, from netip.Addr) (*lesson, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	switch {
	case len(ls.list) == maxLessons:
		return nil, errorf("%d recordings are running, which is the most", maxLessons)
	case slices.ContainsFunc(ls.list, func(l *lesson) bool { return l.name == name }):
		return nil, newError("that name is being recorded already")
	}
	l := &lesson{name: name, from: from, seen: map[netip.Addr]bool{}, left: maxDialogue, ready: make(chan struct{}, 1)}
	ls.list = append(ls.list, l)
	ls.active.Add(1)
	return l, nil
}

func (ls *lessons) end(l *lesson) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.list = slices.DeleteFunc(ls.list, func(other *lesson) bool { return other == l })
	l.left = 0 // for tapes that still have it
	if ls.active.Add(-1) == 0 {
		ls.early = nil
	}
}

// fetch takes what was written down since the last time.
func (ls *lessons) fetch(l *lesson) (lines []byte, over bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	lines, l.out = l.out, nil
	return lines, l.left <= 0
}

// write is a line for a lesson; ls.mu is held.
//
//go:noinline
func (l *lesson) write(lines []byte) {
	if len(lines) > l.left {
		lines, l.left = nil, 0
	}
	l.left -= len(lines)
	l.out = append(l.out, lines...)
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// tapes notes something that the session does: dir is C for what it says, S for what it
// is told, ! for the rest, and 0 for nothing but that it is there. It costs one load while nobody learns.
//
//go:noinline
func (s *session) tapes(dir byte, text string) {
	if s.tape == nil && s.srv.lessons.active.Load() == 0 || s.isOperator {
		return
	}
	s.taped(dir, text)
}

func (s *session) taped(dir byte, text string) {
	ls := &s.srv.lessons
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if s.tape == nil {
		s.tape = &tape{}
		at := s.tapeBegins()
		if s.user != nil {
			at += ", and logged in before the recording began"
		}
		s.tapeLine(ls, '!', at)
		if s.user != nil {
			s.tapeName(ls, s.user.Name)
			s.tapeLine(ls, '!', s.user.asTaped())
		}
	}
	t := s.tape
	if t.of == nil {
		for _, l := range ls.list {
			if l.from == s.peer && l.from.IsValid() || !t.named && l.seen[s.peer] {
				s.tapeTo(ls, l)
				break
			}
		}
	}
	has := ""
	if dir == 'C' {
		if s.in != nil && s.in.bare && !t.lf {
			t.lf = true
			s.tapeLine(ls, '!', "lines end with LF alone")
		}
		verb, name, _ := cutText(text, " ")
		if upperASCII(verb) == "USER" {
			s.tapeName(ls, name)
			if u := s.srv.users.get(name); u != nil {
				has = s.srv.under(u, s.peer).asTaped()
			} else if name != "anonymous" && name != "ftp" && (t.of == nil || name != t.of.name) {
				text = verb + " ***"
			}
		}
		text = unsecret(text)
	}
	if dir != 0 {
		s.tapeLine(ls, dir, text)
	}
	if has != "" {
		s.tapeLine(ls, '!', has)
	}
}

// asTaped is what a recording may find to be needed and u's file, or a profile, has;
// heardUser reads it.
func (u *user) asTaped() string {
	text := "has "
	if u.Profile != "" {
		text += "profile " + u.Profile + "; "
	}
	if u.networkProfile != "" {
		text += "network " + u.networkProfile + "; "
	}
	return text + cmp.Or(u.keyText(u.own), "no other key of a profile")
}

// tapeLine writes one line to the lesson, or keeps it. ls.mu is held.
func (s *session) tapeLine(ls *lessons, dir byte, text string) {
	if len(text) > maxTapeLine {
		text = text[:maxTapeLine] + "..."
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	line := fmt.Appendf(nil, "%s %d %c %s\n", time.Now().UTC().Format("15:04:05.000"), s.id, dir, text)
	switch t := s.tape; {
	case t.of != nil:
		t.of.write(line)
	case !t.named && len(t.before)+len(line) <= maxTapeBefore:
		t.before = append(t.before, line...)
	}
}

// tapeName says whose session it is.
func (s *session) tapeName(ls *lessons, name string) {
	t := s.tape
	if t.of != nil && t.of.from.IsValid() {
		return
	}
	of := slices.IndexFunc(ls.list, func(l *lesson) bool { return !l.from.IsValid() && l.name == name })
	moves := t.of != nil // from a recording that knows its address, and has its beginning
	if t.named = true; of < 0 {
		t.of, t.before = nil, nil // somebody else's
		return
	}
	if l := ls.list[of]; t.of != l {
		s.tapeTo(ls, l)
		if moves {
			s.tapeLine(ls, '!', s.tapeBegins())
		}
	}
}

// tapeBegins is the first line of a session.
func (s *session) tapeBegins() string { return "connected from " + s.addrText() + ", " + s.proto }

// tapeTo gives the lesson what the session has said so far, and what others have from
// the same address that ended without a name, as after a handshake that failed.
func (s *session) tapeTo(ls *lessons, l *lesson) {
	if s.peer.IsValid() && !l.seen[s.peer] && len(l.seen) < maxEarly {
		l.seen[s.peer] = true
		ls.early = slices.DeleteFunc(ls.early, func(e earlyTape) bool {
			if e.from == s.peer {
				l.write(e.lines)
			}
			return e.from == s.peer
		})
	}
	t := s.tape
	t.of = l
	l.write(t.before)
	t.before = nil
}

// tapeEnds is the end of a session.
func (s *session) tapeEnds(result string) {
	if s.tape == nil {
		return
	}
	s.tapes('!', "ended: "+result)
	ls := &s.srv.lessons
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if t := s.tape; t.of == nil && !t.named && ls.active.Load() > 0 {
		if len(ls.early) == maxEarly {
			ls.early = slices.Delete(ls.early, 0, 1)
		}
		ls.early = append(ls.early, earlyTape{s.peer, t.before})
	}
}

// openVerbs are those whose argument is written down: a name, a path or a number. All
// else may hold what nobody should read.
func openVerb(verb string) bool {
	c := commandIndex[verb]
	switch verb {
	case "PASS", "ACCT", "ADAT", "MIC", "CONF", "ENC", "SITE":
		return false
	}
	return c != nil && c.run != nil
}

const upperLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// unsecret is a line as it may be written down.
func unsecret(line string) string {
	verb, arg, more := cutText(line, " ")
	shown := verb
	if up := upperASCII(verb); up == "SITE" {
		what, _, rest := cutText(arg, " ")
		if shown += " " + what; siteIndex[upperASCII(what)] == nil {
			return verb + " ***"
		} else if u := upperASCII(what); u != "EXEC" && u != "SAY" {
			return line
		} else if more = rest; !more {
			return shown
		}
	} else if openVerb(up) {
		return line
	} else if commandIndex[up] == nil && (len(verb) < 3 || len(verb) > 4 || strings.Trim(up, upperLetters) != "") {
		return "***" // no verb of FTP: what stands alone on a line may be a password
	}
	if !more {
		return shown
	}
	return shown + " ***"
}

// tapesReply notes what the session was told; of several lines the first.
func (s *session) tapesReply(code int, sep byte, text string) {
	if s.tape != nil {
		s.taped('S', fmt.Sprintf("%d%c%s", code, sep, text))
	}
}

// tapesTLS notes how a handshake went.
func (s *session) tapesTLS(st tls.ConnectionState, err error) {
	switch {
	case err == nil:
		s.tapes('!', tls.VersionName(st.Version))
	case oldTLS(err):
		s.tapes('!', "TLS failed: it offers TLS 1.1 or older")
	default:
		s.tapes('!', "TLS failed: "+err.Error())
	}
}

// doLearn is the operator's request: lines come for as long as he stays.
func (s *session) doLearn(q *request) error {
	from := netip.Addr{}
	if q.Text != "" {
		var err error
		if from, err = addressIn(q.Text); err != nil {
			return s.badField("text is the address to record, as 10.0.9.4.")
		}
	}
	if q.User == nil || *q.User == "" || len(*q.User) > maxLogName {
		return s.badField("learn needs a user: the name that the device logs in with, of at most %d bytes.", maxLogName)
	}
	l, err := s.srv.lessons.begin(*q.User, from)
	if err != nil {
		s.answer(&answer{Code: codeBusy, Reason: "busy", Text: strings.ToUpper(err.Error()[:1]) + err.Error()[1:] + "."})
		return nil
	}
	defer s.srv.lessons.end(l)
	s.srv.log.Info("recording", "session", s.id, "user", logName(*q.User), "addr", q.Text)
	s.reply(codeDataOpening, "Recording.")
	s.flush()
	x := newTransfer(0, nil)
	x.attended = true
	end := time.NewTimer(maxLesson)
	defer end.Stop()
	_, err = s.watched(x, s.verb, func() error {
		for {
			lines, over := s.srv.lessons.fetch(l)
			if len(lines) > 0 {
				if _, err := (dataWriter{s, x}).Write(lines); err != nil {
					return err
				}
			}
			if over {
				return nil
			}
			select {
			case <-l.ready:
			case <-end.C:
				return nil
			case <-x.stop:
				return x.cancelled()
			}
		}
	})
	if err != nil {
		return s.endOfData(err)
	}
	s.reply(codeDataClosed, "The recording is full, or took too long.")
	return nil
}

// --- the command ---

func runLearn(inv *invocation) error {
	name := inv.args[0]
	if file := inv.str("read"); file != "" {
		data, err := readConfigBytes(file, 2*maxDialogue)
		if err != nil {
			return errorf("%s: %w", file, err)
		}
		return inv.tellLearned(name, string(data))
	}
	from := inv.str("from")
	if a, err := addressIn(from); from != "" && err != nil {
		return usageErr("--from: %s is no address; write one as 10.0.9.4", configQuote(from))
	} else if from != "" {
		from = a.String()
	}
	long := inv.period("for")
	if long <= 0 || long > maxLesson {
		return usageErr("--for: %s is not between 1s and 1h", inv.str("for"))
	}
	file := inv.str("output")
	if file == "" {
		if file = name + ".dialogue"; hasText(name, "/") || beginsWith(name, ".") || shownText(name) != name {
			return usageErr("%s is no name for a file; give one with --output FILE", configQuote(name))
		}
	}
	ctx, stop := signal.NotifyContext(inv.ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	link, err := inv.dialDaemon()
	if err != nil {
		return err
	}
	defer link.close()
	defer context.AfterFunc(ctx, link.close)()
	var f *os.File
	var all builder
	link.begun = func() (err error) {
		if f, err = openDialogue(file); err == nil {
			fmt.Fprintf(inv.stderr, "berth learn: recording %s into %s for %s; have the device do its work now, and end this with Ctrl-C\n", shownText(name), shownText(file), inv.str("for"))
		}
		return err
	}
	_, err = link.ask(map[string]any{"do": "learn", "user": name, "text": from}, func(line []byte) error {
		if all.Len() == 0 {
			if err := joinErrors(f.Chmod(0o600), f.Truncate(0)); err != nil {
				return err
			}
		}
		all.Write(line)
		fmt.Fprint(inv.stdout, shownText(strings.TrimSuffix(string(line), "\n"))+"\n")
		_, err := f.Write(line)
		return err
	})
	if f != nil {
		defer f.Close()
		if info, bad := f.Stat(); all.Len() == 0 && bad == nil && info.Size() == 0 {
			os.Remove(file)
		}
	}
	if ctx.Err() != nil {
		err = nil
	}
	if all.Len() > 0 {
		return cmp.Or(err, inv.tellLearned(name, all.String()))
	}
	if err == nil {
		err = errorf("no session said USER %s in that time; --from ADDRESS records what comes from an address, whatever it says", shownText(name))
	}
	return err
}

// openDialogue opens the file of a recording. An older one stays until there is something
// to write; what is there must be the operator's own, since whoever else has it open, or
// has another name for it, would read what is recorded, and a device would lose its mode.
func openDialogue(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, errorf("%s is a symbolic link, which is not followed; name the file itself with --output", file)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && (st.Mode&(unix.S_IFMT|0o077) != unix.S_IFREG || st.Nlink != 1 || int(st.Uid) != os.Geteuid()) {
		err = errorf("%s is there already, and is not a file that only uid %d may open (mode 0600); name another with --output", file, os.Geteuid())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
