// requests.go is the table of requests that frames carry, and what each of them
// does that is no command and no chat. It is to frames what proto_files.go and
// proto_transfer.go are to lines: handlers parse, call fs.go, upload.go and
// transfer.go as the verbs do, and answer. What both kinds of front end do alike
// is written once, mostly over there.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxDepth bounds how deep a recursive request goes: each level holds a directory
	// open, and no tree that people make is half as deep.
	maxDepth = 100
	// keptNames is how many bytes of names a directory that is being listed remembers,
	// for each level of a recursive list: some thousand directories in one.
	keptNames = 32 << 10
	// smallGet is the largest file that travels through the queue of answers, so
	// that many of them leave with one write.
	smallGet = 16 << 10
)

// A requestKind is everything the server knows about one request: dispatch, the
// checks before it, and the list of requests read nothing else.
type requestKind struct {
	do      string
	fields  string // that it takes, for people
	help    string
	login   bool
	perm    permission
	onBox   bool // for the operator through the local socket alone
	noLogin bool // the operator needs no login for it
	streams bool // takes D, F, S or W behind its R
	run     func(s *session, q *request) error
	class   commandClass // made from the rest, for the metrics
}

// classify tells what kind of work a row of the table is, by its rules.
func (r *requestKind) classify() commandClass {
	switch {
	case r.do == "login":
		return classLogin
	case r.do == "get" || r.do == "put":
		return classTransfer
	case r.perm == permList:
		return classList
	case r.perm != 0 || r.do == "cd":
		return classFile
	}
	return classOther
}

var (
	requests     []requestKind
	requestIndex = map[string]*requestKind{}
)

func init() {
	requests = []requestKind{
		{do: "login", fields: "user, password", help: "log in", run: (*session).doLogin},
		{do: "list", fields: "path, recursive", help: "list a directory", login: true, perm: permList, run: (*session).doList},
		{do: "stat", fields: "path", help: "tell about one name", login: true, perm: permList, run: (*session).doStat},
		{do: "get", fields: "path, offset, size, sha256", help: "send a file to the client", login: true, perm: permRead, run: (*session).doGet},
		{do: "put", fields: "path, size, offset, sha256, mtime, mode, append", help: "take a file from the client", login: true, perm: permWrite, streams: true, run: (*session).doPut},
		{do: "mkdir", fields: "path, recursive", help: "make a directory", login: true, perm: permMkdir, run: (*session).doMkdir},
		{do: "remove", fields: "path, recursive", help: "remove a file or a directory", login: true, perm: permDelete, run: (*session).doRemove},
		{do: "move", fields: "path, to", help: "rename", login: true, perm: permRename, run: (*session).doMove},
		{do: "touch", fields: "path, mtime", help: "set a time of change, or make an empty file", login: true, perm: permWrite, run: (*session).doTouch},
		{do: "chmod", fields: "path, mode", help: "set permission bits", login: true, perm: permWrite, run: (*session).doChmod},
		{do: "hash", fields: "path, algorithm, offset, size", help: "tell a digest", login: true, perm: permRead, run: (*session).doHash},
		{do: "cd", fields: "path", help: "change the directory", login: true, run: (*session).doCd},
		{do: "usage", help: "tell how much is used and allowed", login: true, run: (*session).doUsage},
		{do: "exec", fields: "command, args, shell, tty, rows, cols, term, stdin", help: "run a command", login: true, streams: true, run: (*session).doExec},
		{do: "echo", fields: "text", help: "send the text back", login: true, run: (*session).doEcho},
		{do: "upper", fields: "text", help: "send it back in capitals", login: true, run: (*session).doUpper},
		{do: "time", help: "tell the time", login: true, run: (*session).doTime},
		{do: "say", fields: "text", help: "tell everybody who listens", login: true, run: (*session).doSay},
		{do: "listen", fields: "off", help: "hear what is said", login: true, run: (*session).doListen},
		{do: "who", help: "list the sessions", login: true, noLogin: true, run: (*session).doWho},
		{do: "quit", help: "leave", run: (*session).doQuit},
		{do: "kick", fields: "session", help: "end a session", onBox: true, run: (*session).doKick},
		{do: "wall", fields: "text", help: "tell every session", onBox: true, run: (*session).doWall},
		{do: "quotas", fields: "user", help: "tell what users store", onBox: true, run: (*session).doQuotas},
		{do: "metrics", help: "tell the metrics", onBox: true, run: (*session).doMetrics},
		{do: "standing", fields: "user, text", help: "tell of bans and limits", onBox: true, run: (*session).doStanding},
		{do: "reload", help: "read the configuration again", onBox: true, run: (*session).doReload},
		{do: "learn", fields: "user, text", help: "record what a device says", onBox: true, run: (*session).doLearn},
		{do: "drain", help: "end the daemon when running transfers are done", onBox: true, run: (*session).doDrain},
	}
	for i := range requests {
		requests[i].class = requests[i].classify()
		requestIndex[requests[i].do] = &requests[i]
	}
}

// requestNames lists what this session may ask for.
func requestNames(s *session) string {
	var names []string
	for i := range requests {
		if !requests[i].onBox || s.operator() {
			names = append(names, requests[i].do)
		}
	}
	return strings.Join(names, ", ")
}

// failure is the answer to what did not work.
type failure struct {
	answer
	Have *int64 `json:"have,omitempty"` // bytes that are there, for reason "offset"
}

// badField answers a request with something wrong in it.
func (s *session) badField(format string, args ...any) error {
	s.answer(&answer{Code: codeBadArgument, Reason: "bad_request", Text: fmt.Sprintf(format, args...)})
	return nil
}

// --- names ---

// pathOf is what a path of a request means in this session.
func (s *session) pathOf(text *string, raw []byte) (string, error) {
	switch {
	case raw != nil:
		return s.path(string(raw))
	case text != nil:
		return s.path(*text)
	}
	return s.path("")
}

func (q *request) hasPath() bool { return len(q.PathBytes) > 0 || q.Path != nil && *q.Path != "" }

// shownPath is the path as logs show it.
func (q *request) shownPath() string {
	if q.PathBytes != nil {
		return string(q.PathBytes)
	}
	if q.Path != nil {
		return *q.Path
	}
	return ""
}

// withPath runs do on the request's path, which it must have.
func (s *session) withPath(q *request, do func(p string) error) error {
	if !q.hasPath() {
		return s.badField("%s needs a path.", q.Do)
	}
	p, err := s.pathOf(q.Path, q.PathBytes)
	if err != nil {
		return s.fail(err)
	}
	return do(p)
}

// done answers for a change to p: with the code, or with why it was not made.
func (s *session) done(err error, p string, code int, text string) error {
	if err != nil {
		return s.noChange(p, err)
	}
	s.reply(code, text)
	return nil
}

// --- login and small talk ---

type welcome struct {
	answer
	User        string   `json:"user"`
	Home        string   `json:"home"`
	Permissions []string `json:"permissions"`
	Commands    []string `json:"commands"`
	Shell       bool     `json:"shell"`
	Server      string   `json:"server"`
	Version     string   `json:"version"`
	Passive     string   `json:"passive,omitempty"` // ports, for berth doctor
}

func (s *session) doLogin(q *request) error {
	if s.user != nil && s.method == "local" && q.Password != nil {
		s.logout("ok") // as USER does it: the socket's word was only the first
	}
	if s.user != nil {
		if q.User == nil || *q.User == s.user.Name && q.Password == nil && s.method != "password" {
			return s.welcome() // the socket has said who it is
		}
		s.answer(&answer{Code: codeBadSequence, Reason: "logged_in", Text: "Already logged in as " + s.user.Name + "; another user takes another connection."})
		return nil
	}
	if left, banned := s.srv.auth.banned(s.peer); banned {
		s.replyReason(codeClosing, "banned", fmt.Sprintf("Too many failed logins from your address; try again in %s.", left.Round(time.Second)))
		s.flush()
		return errAbuse
	}
	name := ""
	if q.User != nil {
		name = *q.User
	}
	if q.Password == nil {
		if u, method := s.provenUser(name); u != nil {
			return s.welcomeAs(u, method)
		}
		if fp := s.fingerprint(); fp != "" {
			s.srv.auth.unproven(name, s.peer, s.srv.users.byCertificate(fp))
		}
		s.answer(&answer{Code: codeNotLoggedIn, Reason: "login", Text: "Neither a client certificate nor the local socket says that this is you; log in with user and password."})
		return nil
	}
	if name == "" {
		return s.badField("login needs a user.")
	}
	if s.clearRefused(s.srv.users.get(name)) {
		s.refusedClear(name)
		s.answer(&answer{Code: codeNotLoggedIn, Reason: "tls_required", Text: "Passwords are not accepted in clear text from there; use TLS."})
		return nil
	}
	u, err := s.checkPassword(name, *q.Password)
	if err != nil || u == nil {
		return err
	}
	return s.welcomeAs(u, "password")
}

// provenUser is who the connection itself says the client is; name, if not empty,
// chooses among several.
func (s *session) provenUser(name string) (u *user, method string) {
	fits := func(u *user) bool { return (name == "" || u.Name == name) && s.srv.auth.allowed(u, s.peer) }
	if s.hasUID {
		if u := s.srv.users.byUID(s.localUID); u != nil && fits(u) {
			return u, "local"
		}
	}
	if fp := s.fingerprint(); fp != "" {
		for _, u := range s.srv.users.byCertificate(fp) {
			if fits(u) {
				return u, "certificate"
			}
		}
	}
	return nil, ""
}

func (s *session) welcomeAs(u *user, method string) error {
	if ok, err := s.login(u, method); !ok {
		return err
	}
	return s.welcome()
}

func (s *session) welcome() error {
	version, _ := buildVersion()
	u := s.user
	w := &welcome{answer: answer{Code: codeLoggedIn, Text: "Logged in."}, User: u.Name, Home: "/", Permissions: u.Permissions.names(),
		Commands: slices.Clone(u.Commands), Shell: u.Shell, Server: s.srv.config().Server.Name, Version: version}
	if p := s.srv.config().Passive.Ports; p.count() > 0 {
		w.Passive = fmt.Sprintf("%d-%d", p.Low, p.High)
	}
	if w.Commands == nil {
		w.Commands = []string{}
	}
	s.answer(w)
	return nil
}

func (s *session) doEcho(q *request) error { return s.sendBack(q.Text) }

func (s *session) doUpper(q *request) error { return s.sendBack(strings.ToUpper(q.Text)) }

func (s *session) sendBack(text string) error {
	if len(text) > maxEcho {
		return s.badField("text has at most %d bytes; longer ones go by P.", maxEcho)
	}
	s.reply(codeOK, text)
	return nil
}

type timeAnswer struct {
	answer
	Time string `json:"time"`
}

func (s *session) doTime(*request) error {
	now := time.Now()
	s.answer(&timeAnswer{answer{Code: codeOK, Text: now.Format(time.ANSIC)}, now.UTC().Format(time.RFC3339Nano)})
	return nil
}

func (s *session) doQuit(*request) error {
	s.reply(codeGoodbye, "Goodbye.")
	return errQuit
}

// --- telling about files ---

// appendFields is what lists and stat tell of an entry, as the inside of a JSON object.
func appendFields(b []byte, name string, e *entry) []byte {
	b = append(b, `"name":`...)
	b = appendJSONString(b, name)
	if raw := rawName(name); raw != nil {
		b = append(b, `,"name_bytes":`...)
		b = append(b, encodeJSON(raw)...)
	}
	kind := "other"
	switch {
	case e.isDir():
		kind = "dir"
	case e.isFile():
		kind = "file"
	case e.mode&unix.S_IFMT == unix.S_IFLNK:
		kind = "link"
	}
	b = append(b, `,"type":"`...)
	b = append(b, kind...)
	b = append(b, `","size":`...)
	b = strconv.AppendInt(b, e.size, 10)
	b = append(b, `,"mtime":"`...)
	b = e.mtime().UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","mode":"`...)
	b = append(b, modeText(e.mode)...)
	b = append(b, '"')
	if e.link != "" {
		b = append(b, `,"target":`...)
		b = appendJSONString(b, e.link)
	}
	return b
}

// modeText is a mode as all answers tell it: four digits.
//
//go:noinline
func modeText(mode uint32) string {
	return string([]byte{'0' + byte(mode>>9&7), '0' + byte(mode>>6&7), '0' + byte(mode>>3&7), '0' + byte(mode&7)})
}

// appendJSONString is name as a JSON string. Most names need no thought.
func appendJSONString(b []byte, name string) []byte {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return append(b, encodeJSON(name)...)
		}
	}
	b = append(b, '"')
	b = append(b, name...)
	return append(b, '"')
}

// rawName is a name that is not UTF-8, which JSON cannot carry; else nil.
func rawName(name string) []byte {
	if strings.ToValidUTF8(name, "") == name {
		return nil
	}
	return []byte(name)
}

// dataWriter sends what is written to it as D frames, for the running request.
type dataWriter struct {
	s *session
	x *transfer
}

func (w dataWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if err := w.x.cancelled(); err != nil {
			return 0, err
		}
		n := min(len(rest), maxFrame)
		if err := w.s.frame(frameData, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
		w.x.progress(int64(n))
	}
	return len(p), w.s.flush()
}

func (s *session) doList(q *request) error {
	p, err := s.pathOf(q.Path, q.PathBytes)
	if err != nil {
		return s.fail(err)
	}
	d, err := s.jail.openDir(p)
	if errors.Is(err, unix.ENOTDIR) {
		var e entry
		if e, err = s.jail.lstat(p); err == nil {
			return s.lines(func(w io.Writer) error {
				_, err := w.Write(append(append(appendFields([]byte{'{'}, baseName(p), &e), '}'), '\n'))
				return err
			})
		}
	}
	if err != nil {
		return s.fail(err)
	}
	end := &listEnd{answer: answer{Code: codeDataClosed, Text: "Done."}}
	return s.linesUpTo(end, func(w io.Writer) error { return s.listDir(w, d, p, "", q.Recursive, 0, &end.Skipped) })
}

// listEnd is the last answer to a list.
type listEnd struct {
	answer
	// Skipped counts the directories that could not be opened: who makes another tree
	// the same must not take them for empty.
	Skipped int64 `json:"skipped,omitempty"`
}

// lines answers a request with lines of JSON.
func (s *session) lines(write func(w io.Writer) error) error {
	return s.linesUpTo(&answer{Code: codeDataClosed, Text: "Done."}, write)
}

// linesUpTo is lines with another last answer, which write may fill.
func (s *session) linesUpTo(last interface{ base() *answer }, write func(w io.Writer) error) error {
	s.reply(codeDataOpening, "Here it comes.")
	x := newTransfer(0, nil)
	_, err := s.watched(x, s.verb, func() error { return write(dataWriter{s, x}) })
	if err != nil {
		return s.endOfData(err)
	}
	s.answer(last)
	return nil
}

// endOfData answers a request that ended with err, unless nobody can be answered
// any more: a frame that was begun and not finished has no end.
func (s *session) endOfData(err error) error {
	s.wmu.Lock()
	broken := s.outErr
	s.wmu.Unlock()
	if broken != nil {
		return broken
	}
	return s.fail(err)
}

// listDir writes a line for each name in d, and then what is below its directories.
// Their names are remembered up to keptNames bytes; where there are more, d's directory
// is read a second time.
func (s *session) listDir(w io.Writer, d *dirStream, p, prefix string, recursive bool, depth int, skipped *int64) error {
	var dirs []string
	kept := 0
	err := writeListing(w, d, true, nil, func(b []byte, e *entry) []byte {
		if recursive && e.isDir() {
			if kept += len(e.name); kept <= keptNames {
				dirs = append(dirs, strings.Clone(e.name))
			}
		}
		return append(append(appendFields(append(b, '{'), prefix+e.name, e), '}'), '\n')
	})
	d.close() // the second reading opens its own
	if err != nil || !recursive {
		return err
	}
	list := func(name string) error {
		sub, err := s.jail.openDir(path.Join(p, name))
		if err != nil {
			if !errors.Is(err, unix.ENOENT) { // else removed meanwhile
				*skipped++
			}
			return nil // its own line has told of it
		}
		return s.listDir(w, sub, path.Join(p, name), prefix+name+"/", true, depth+1, skipped)
	}
	switch {
	case len(dirs) > 0 && depth >= maxDepth:
		return errTooDeep
	case kept > keptNames:
		return s.below(p, depth, list, skipped)
	}
	for _, name := range dirs {
		if err := list(name); err != nil {
			return err
		}
	}
	return nil
}

// below calls fn for each directory in p, and counts it as skipped if it cannot.
func (s *session) below(p string, depth int, fn func(name string) error, skipped *int64) error {
	d, err := s.jail.openDir(p)
	if err != nil {
		if !errors.Is(err, unix.ENOENT) {
			*skipped++
		}
		return nil
	}
	defer d.close()
	if depth >= maxDepth {
		return d.each(true, func(e *entry) error {
			if e.isDir() {
				return errTooDeep
			}
			return nil
		})
	}
	return d.each(true, func(e *entry) error {
		if !e.isDir() {
			return nil
		}
		return fn(strings.Clone(e.name))
	})
}

type statAnswer struct {
	answer
	Name      string       `json:"name"`
	NameBytes []byte       `json:"name_bytes,omitempty"`
	Type      string       `json:"type"`
	Size      int64        `json:"size"`
	MTime     string       `json:"mtime"`
	Mode      string       `json:"mode"`
	Partial   *partialInfo `json:"partial,omitempty"`
}

// partialInfo is what an upload that was cut off has left: a client that finds
// the same digest over its own first bytes may go on from there.
type partialInfo struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func (s *session) doStat(q *request) error {
	p, err := s.pathOf(q.Path, q.PathBytes)
	if err != nil {
		return s.fail(err)
	}
	e, err := s.jail.stat(p)
	if err != nil {
		if l, lerr := s.jail.lstat(p); lerr == nil {
			e, err = l, nil // a link to nowhere
		}
	}
	if err != nil {
		return s.fail(err)
	}
	a := &statAnswer{answer: answer{Code: codeFileStatus, Text: "Here it is."}, Name: baseName(p), NameBytes: rawName(baseName(p)),
		Size: e.size, MTime: e.mtime().UTC().Format(time.RFC3339Nano), Mode: modeText(e.mode), Type: "other"}
	switch {
	case e.isDir():
		a.Type = "dir"
	case e.isFile():
		a.Type = "file"
	case e.mode&unix.S_IFMT == unix.S_IFLNK:
		a.Type = "link"
	}
	if f, size, err := s.jail.openPartial(p); err == nil {
		defer f.Close()
		sum, _, err := s.digestOf(f, p, 0, size, 1)
		if err != nil {
			return s.fail(err)
		}
		a.Partial = &partialInfo{size, hexText(sum)}
	}
	s.answer(a)
	return nil
}

func (s *session) doHash(q *request) error {
	return s.withPath(q, func(p string) error {
		alg := digestIndex(q.Algorithm)
		if alg < 0 {
			return s.badField("algorithm is one of %s.", strings.Join(digestNames(), ", "))
		}
		if q.Offset < 0 || q.Size != nil && *q.Size < 0 {
			return s.badField("offset and size are not below 0.")
		}
		sum, _, _, err := s.sumOf(alg, p, q.Offset, func(size int64) int64 {
			if q.Size != nil && *q.Size < size-q.Offset {
				return q.Offset + *q.Size
			}
			return size
		})
		if err != nil {
			return s.fail(err)
		}
		a := map[string]any{"code": codeFileStatus, "text": "Here it is.", fieldName(digests[alg].name): sum}
		if s.fr.id != nil {
			a["id"] = s.fr.id
		}
		s.frame(frameAnswer, encodeJSON(a))
		s.counted(codeFileStatus)
		return nil
	})
}

// fieldName is a digest's name as a field: sha256 for SHA-256.
func fieldName(alg string) string { return strings.ToLower(strings.ReplaceAll(alg, "-", "")) }

func digestNames() []string {
	var names []string
	for i := range digests {
		names = append(names, fieldName(digests[i].name))
	}
	return names
}

// digestIndex finds an algorithm by either spelling; SHA-256 if none is named.
func digestIndex(name string) int {
	if name == "" {
		name = "sha256"
	}
	for i := range digests {
		if fieldName(name) == fieldName(digests[i].name) {
			return i
		}
	}
	return -1
}

type usageAnswer struct {
	answer
	Bytes      *int64 `json:"bytes,omitempty"` // what is left out is being counted, or counted by the kernel
	Files      *int64 `json:"files,omitempty"`
	QuotaBytes int64  `json:"quota_bytes"` // 0: no limit
	QuotaFiles int64  `json:"quota_files"`
	Free       int64  `json:"free"` // bytes on the disk
}

func (s *session) doUsage(*request) error {
	free, err := s.jail.free("/")
	if err != nil {
		return s.fail(err)
	}
	a := &usageAnswer{answer: answer{Code: codeFileStatus, Text: "Here it is."}, QuotaBytes: int64(s.user.QuotaBytes), QuotaFiles: s.user.QuotaFiles, Free: free}
	if s.jail.balance != nil {
		if bytes, files, known := s.jail.balance.usage(); known {
			a.Bytes, a.Files = &bytes, &files
		} else {
			a.Text, a.Reason = "What is stored is being counted.", "counting"
		}
	} else {
		a.Text = "The file system counts."
	}
	s.answer(a)
	return nil
}

// --- changing names ---

func (s *session) doCd(q *request) error {
	p, err := s.pathOf(q.Path, q.PathBytes)
	if q.Path == nil && q.PathBytes == nil {
		p = "/"
	}
	if err == nil {
		err = s.jail.isDir(p)
	}
	if err != nil {
		return s.fail(err)
	}
	s.cwd = p
	s.answer(&cdAnswer{answer{Code: codeFileDone, Text: "Directory is now " + strings.ToValidUTF8(p, "\uFFFD")}, strings.ToValidUTF8(p, "\uFFFD")})
	return nil
}

type cdAnswer struct {
	answer
	Path string `json:"path"`
}

func (s *session) doMkdir(q *request) error {
	return s.withPath(q, func(p string) error {
		if q.Recursive {
			for i, c := range p[1:] {
				if c != '/' {
					continue
				}
				err := s.jail.mkdir(p[:i+1])
				if err == nil {
					s.changed("directory made", p[:i+1])
				} else if s.jail.isDir(p[:i+1]) != nil {
					return s.noChange(p, err)
				}
			}
		}
		err := s.jail.mkdir(p)
		if err == nil {
			s.changed("directory made", p)
		} else if q.Recursive && s.jail.isDir(p) == nil {
			err = nil
		}
		return s.done(err, p, codePath, "Created.")
	})
}

func (s *session) doRemove(q *request) error {
	return s.withPath(q, func(p string) error {
		e, err := s.jail.lstat(p)
		switch {
		case err != nil:
		case s.jail.isTop(p):
			err = errShareRoot // before anything below it goes
		case !e.isDir():
			if err = s.jail.remove(p); err == nil {
				s.deleted(p, e.size)
			}
		case q.Recursive:
			x := newTransfer(0, nil)
			x.file = p
			var gone removed
			began := time.Now()
			s.flush()
			_, err = s.watched(x, s.verb, func() error { return s.removeTree(x, p, 0, &gone) })
			// One line, however many names; the transfer log has each of them.
			s.changedSo("tree removed", p, changeResult(err), "files", gone.files, "directories", gone.directories, "bytes", gone.bytes, "dur", time.Since(began).Round(time.Microsecond))
			if err != nil {
				return s.fail(err) // told already
			}
		default:
			if err = s.jail.rmdir(p); err == nil {
				s.changed("directory removed", p)
			}
		}
		return s.done(err, p, codeFileDone, "Removed.")
	})
}

// errTooDeep ends a recursive request that would hold too many directories open.
var errTooDeep = errors.New("directories lie too deep in each other")

// changeResult is the word for the log.
func changeResult(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// removed is what removeTree has removed so far.
type removed struct{ files, directories, bytes int64 }

// removeTree removes a directory and all below it that can be seen. What was
// removed before an error, or before it was cancelled, stays so.
func (s *session) removeTree(x *transfer, p string, depth int, gone *removed) error {
	if depth > maxDepth {
		return errTooDeep
	}
	d, err := s.jail.openDir(p)
	if err != nil {
		return err
	}
	defer d.close()
	err = d.each(true, func(e *entry) error {
		if err := x.cancelled(); err != nil {
			return err
		}
		name := path.Join(p, e.name)
		if e.isDir() {
			return s.removeTree(x, name, depth+1, gone)
		}
		switch err := s.jail.remove(name); {
		case err == nil:
			gone.files++
			gone.bytes += e.size
			s.transferred('d', name, e.size, 0, true)
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err = s.jail.rmdir(p); err == nil {
		gone.directories++
	}
	return err
}

func (s *session) doMove(q *request) error {
	return s.withPath(q, func(from string) error {
		if len(q.ToBytes) == 0 && (q.To == nil || *q.To == "") {
			return s.badField("move needs a path and what it becomes, to.")
		}
		to, err := s.pathOf(q.To, q.ToBytes)
		if err == nil {
			// Replacing a file destroys it: that takes more than the right to rename.
			err = s.jail.rename(from, to, s.user.can(permWrite) || s.user.can(permDelete))
		}
		if err == nil {
			s.changed("renamed", from, "to", to)
		}
		return s.done(err, to, codeFileDone, "Moved.")
	})
}

// parseMTime is a time of change as requests carry it.
func parseMTime(text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || t.Year() < 1970 || t.Year() > 9999 {
		return t, errorf("mtime is a time from 1970 on, like %s", time.Date(2026, 11, 21, 12, 0, 0, 500_000_000, time.UTC).Format(time.RFC3339Nano))
	}
	return t, nil
}

func parseMode(text string) (uint32, error) {
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o7777 {
		return 0, errorf(`mode is a string of octal digits, as "0644"; special bits are left out`)
	}
	return uint32(mode), nil
}

func (s *session) doTouch(q *request) error {
	return s.withPath(q, func(p string) error {
		when := time.Now()
		if q.MTime != "" {
			var err error
			if when, err = parseMTime(q.MTime); err != nil {
				return s.badField("%v.", err)
			}
		}
		if _, err := s.jail.lstat(p); errors.Is(err, os.ErrNotExist) {
			u, err := s.jail.create(p, uploadStore, 0, s.srv.config().Transfer.Durable)
			if err != nil {
				return s.refuseUpload(p, err)
			}
			if err := u.commit(); err != nil {
				return s.refuseUpload(p, err)
			}
			s.changed("file made", p)
			return s.done(s.jail.setTimes(p, when), p, codeFileDone, "Time changed.")
		}
		err := s.jail.setTimes(p, when)
		if err == nil {
			s.timeChanged(p, when)
		}
		return s.done(err, p, codeFileDone, "Time changed.")
	})
}

func (s *session) doChmod(q *request) error {
	return s.withPath(q, func(p string) error {
		mode, err := parseMode(q.Mode)
		if err != nil {
			return s.badField("%v.", err)
		}
		if err = s.jail.chmod(p, mode); err == nil {
			s.modeChanged(p, mode)
		}
		return s.done(err, p, codeFileDone, "Mode changed.")
	})
}
