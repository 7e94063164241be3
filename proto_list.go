// proto_list.go holds the handlers of verbs that show names: LIST, NLST, MLSD,
// MLST and STAT. It is apart from proto_transfer.go, whose data connections it
// uses, as another question: not how bytes move but what is told, and how. How a
// line looks is listing.go's.

package main

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"time"
)

// A listRequest is the argument of LIST, NLST or STAT, taken apart.
type listRequest struct {
	path string // as the client gave it; "" for the directory he is in
	self bool   // -d: the name itself, not what is in it
	long bool   // -l
}

// parseList takes leading words of ls flags off an argument, unless a file of
// exactly that name exists: names are taken literally first (field rule 14).
func (s *session) parseList(arg string) listRequest {
	var r listRequest
	for strings.HasPrefix(arg, "-") && len(arg) > 1 {
		if p, err := s.path(arg); err == nil {
			if _, err := s.jail.lstat(p); err == nil {
				break
			}
		}
		word, rest, _ := strings.Cut(arg, " ")
		if strings.Trim(word[1:], "aAlLrRtSdFhn1ogC") != "" {
			break
		}
		r.self = r.self || strings.Contains(word, "d")
		r.long = r.long || strings.Contains(word, "l")
		arg = rest
	}
	r.path = s.slashed(arg)
	return r
}

//go:noinline
func (s *session) newLister() *lister {
	return &lister{now: time.Now(), owner: s.jail.owner, can: s.user.Permissions, facts: s.facts}
}

// listing is a directory, or one name, ready to be written.
type listing struct {
	dir   *dirStream
	one   entry
	isDir bool
}

func (l *listing) close() {
	if l.dir != nil {
		l.dir.close()
	}
}

// openListing finds what a path names: the contents of a directory (through a
// link too), or the name itself.
func (s *session) openListing(r listRequest) (*listing, string, error) {
	p, err := s.path(r.path)
	if err != nil {
		return nil, "", err
	}
	if !r.self {
		d, err := s.jail.openDir(p)
		if err == nil {
			return &listing{dir: d, isDir: true}, p, nil
		}
		if !errors.Is(err, syscall.ENOTDIR) {
			if _, lerr := s.jail.lstat(p); lerr != nil || !errors.Is(err, syscall.EXDEV) {
				return nil, p, err
			}
		}
	}
	e, err := s.jail.lstat(p)
	if err != nil {
		return nil, p, err
	}
	if r.path != "" {
		e.name = r.path // as ls(1) prints it: what was asked for
	}
	return &listing{one: e}, p, nil
}

// sendListing writes a listing over a data connection.
func (s *session) sendListing(l *listing, p string, stat bool, before []entry, format listFormat) error {
	defer l.close()
	return s.sendLines(p, func(out io.Writer) error {
		if l.isDir {
			return writeListing(out, l.dir, stat, before, format)
		}
		_, err := out.Write(format(nil, &l.one))
		return err
	})
}

// sendLines runs the data connection of a listing. It is no file transfer, so
// it is neither logged nor counted as one.
func (s *session) sendLines(p string, write func(out io.Writer) error) error {
	x, aborts, err := s.transfer(false, p, 0, "Here comes the listing.", nil, func(x *transfer) error {
		w, finish := x.encoder(coding{z: s.modeZ})
		err := write(sent{x: x, w: w, elsewhere: s.elsewhere})
		if err == nil {
			err = finish()
		}
		return x.explain(err)
	})
	if s.srv.debug() && x != nil {
		s.srv.log.Debug("listing", "session", s.id, "user", s.userName(), "addr", s.addrText(), "proto", s.proto, "verb", s.verb, "path", p, "bytes", x.moved.Load(), "result", transferResult(err))
	}
	s.conclude(err, "Listing complete.", aborts)
	return nil
}

func (s *session) cmdLIST(arg string) error {
	l, p, err := s.openListing(s.parseList(arg))
	if err != nil {
		return s.fail(err)
	}
	return s.sendListing(l, p, true, nil, s.newLister().appendLIST)
}

// cmdNLST is the one listing that expands wildcards: mget and mdelete of every
// BSD client depend on it. A name that exists literally comes first.
func (s *session) cmdNLST(arg string) error {
	r := s.parseList(arg)
	if r.long {
		return s.cmdLIST(arg)
	}
	l, p, err := s.openListing(r)
	if err != nil && isGlob(r.path) && errors.Is(err, os.ErrNotExist) {
		names, gerr := s.jail.glob(s.cwd, r.path)
		if gerr != nil {
			return s.fail(gerr)
		}
		if len(names) == 0 && r.path != "*" { // that is no more than the directory, which may be empty
			s.reply(codeDenied, "Nothing matches.")
			return nil
		}
		return s.sendLines(p, func(out io.Writer) error {
			var b []byte
			for i := range names {
				b = appendNLST(b, &entry{name: names[i]})
				if len(b) >= listFlush || i == len(names)-1 {
					if _, err := out.Write(b); err != nil {
						return err
					}
					b = b[:0]
				}
			}
			return nil
		})
	}
	if err != nil {
		return s.fail(err)
	}
	return s.sendListing(l, p, false, nil, appendNLST)
}

// cmdMLSD lists a directory and nothing else: 501 for a file (RFC 3659 section
// 7.2.1), 550 for what is missing.
func (s *session) cmdMLSD(arg string) error {
	p, err := s.path(arg)
	if err != nil {
		return s.fail(err)
	}
	d, err := s.jail.openDir(p)
	if errors.Is(err, syscall.ENOTDIR) {
		s.reply(codeBadArgument, "MLSD lists directories; use MLST for a file.")
		return nil
	}
	if err != nil {
		return s.fail(err)
	}
	l := s.newLister()
	self, err := d.self()
	if err != nil {
		d.close()
		return s.fail(err)
	}
	format := func(b []byte, e *entry) []byte {
		kind := ""
		if e.name == "." {
			kind = "cdir"
		}
		return append(l.appendMLSx(b, e, kind), '\r', '\n')
	}
	return s.sendListing(&listing{dir: d, isDir: true}, p, true, []entry{self}, format)
}

// cmdMLST tells about one name over the control connection (RFC 3659 section 7.2).
func (s *session) cmdMLST(arg string) error {
	p, err := s.path(arg)
	if err != nil {
		return s.fail(err)
	}
	e, err := s.jail.lstat(p)
	if err != nil {
		return s.fail(err)
	}
	e.name = p
	s.replyLines(codeFileDone, "Listing "+p, []string{string(s.newLister().appendMLSx(nil, &e, ""))}, "End")
	return nil
}

// cmdSTAT with a path lists over the control connection, which is how netcat
// sees a directory; without one it tells the session's state.
func (s *session) cmdSTAT(arg string) error {
	if arg == "" {
		lines := []string{"Connected from " + s.addrText()}
		if s.user != nil {
			lines = append(lines, "Logged in as "+s.user.Name, "Directory "+s.cwd)
		} else {
			lines = append(lines, "Not logged in")
		}
		kind := "binary"
		if s.ascii {
			kind = "ASCII"
		}
		tls := "in clear text"
		if s.tls != nil {
			tls = "encrypted"
		}
		lines = append(lines, "Type "+kind+", structure file, mode stream", "Control connection "+tls)
		s.replyLines(codeStatus, "Status of "+s.srv.config().Server.Name+":", lines, "End of status.")
		return nil
	}
	if s.user == nil {
		s.reply(codeNotLoggedIn, "Log in with USER and PASS first.")
		return nil
	}
	if !s.user.can(permList) {
		s.refused("STAT", "path", arg)
		s.reply(codeDenied, "Permission denied: this account may not list.")
		return nil
	}
	l, p, err := s.openListing(s.parseList(arg))
	if err != nil {
		return s.fail(err)
	}
	defer l.close()
	code := codeFileStatus
	if l.isDir {
		code = codeDirStatus
	}
	s.wmu.Lock()
	s.put(code, '-', "Status of "+arg+":")
	s.counted(code)
	s.wmu.Unlock()
	format := s.newLister().appendLIST
	if l.isDir {
		err = writeListing(controlLines{s}, l.dir, true, nil, format)
	} else {
		_, err = controlLines{s}.Write(format(nil, &l.one))
	}
	if err != nil && s.flush() == nil { // not for a client that went away
		s.srv.log.Warn("listing stopped", "session", s.id, "user", s.user.Name, "addr", s.addrText(), "proto", s.proto, "verb", s.verb, "path", p, "error", err)
	}
	s.wmu.Lock()
	s.put(code, ' ', "End of status.")
	s.wmu.Unlock()
	return nil
}

// controlLines writes whole listing lines into a multi-line reply: each with a
// space in front, so that a name of "226 done" ends nothing.
type controlLines struct{ s *session }

func (c controlLines) Write(p []byte) (int, error) {
	c.s.wmu.Lock()
	defer c.s.wmu.Unlock()
	for line := range strings.SplitSeq(strings.TrimSuffix(string(p), "\r\n"), "\r\n") {
		c.s.putText(" " + line)
	}
	return len(p), c.s.outErr
}
