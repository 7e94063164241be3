// learn_read.go tells what a device needs from what it was heard to say: a function
// from a dialogue to findings, and nothing else, so that recordings of devices that
// nobody here has can be its tests. Apart from learn.go, which listens, because it must
// not know a session, and grows by what each new device does.

package main

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

const (
	maxLearned = 100 // names, addresses and verbs that are told apart
	maxRefused = 50  // refusals that are kept
)

// A refusedVerb is what was refused, and what the device did next.
type refusedVerb struct{ verb, reply, next string }

// findings are what a dialogue tells of a device.
type findings struct {
	sessions          int
	from, names       []string
	verbs             []string // in the order of their first use
	refused           []refusedVerb
	tls               string // a version, or why there is none
	oldTLS, clear, lf bool
	active, passive   bool
	uploads, pictures int // pictures by their names
	bytes, most       int64
	depth             int // of directories
	noQuit            int
	loggedIn, done    bool // done: a file went through
	loginFailed       bool
	full              bool       // of its quota
	atOnce            int        // sessions that it may have had, and wanted more
	perm              permission // that its commands take
	quirks            quirk      // that it needs
	against           quirk      // that would keep it from its work
	has               *user      // as which it came, with a profile or without; nil: nobody known
}

// pictureNames end what cameras store.
var pictureNames = []string{".jpg", ".jpeg", ".mp4", ".avi", ".mkv", ".mov", ".dav", ".264", ".265", ".h264", ".h265", ".ts"}

// isPicture is 1 for a name that one has, so that they can be counted.
//
//go:noinline
func isPicture(name string) int {
	if inList(pictureNames, strings.ToLower(path.Ext(name))) {
		return 1
	}
	return 0
}

// heard is one session of a dialogue on its way through readDialogue.
type heard struct {
	verb, arg string
	renamed   string
	pending   int  // of refused, counted from 1: what came next is not known yet
	epsv      bool // EPSV was answered, and nothing has come of it yet
	quit      bool
}

// readDialogue finds out what a device does. A line is TIME SESSION C|S|! TEXT.
func readDialogue(text string) *findings {
	f := &findings{}
	all := map[string]*heard{}
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimRight(line, "\r\n"), " ", 4)
		if len(fields) < 4 || beginsWith(line, "#") {
			continue
		}
		said := fields[3]
		h := all[fields[1]]
		if h == nil {
			h = &heard{}
			all[fields[1]] = h
			f.sessions++
		}
		switch fields[2] {
		case "!":
			f.event(h, said)
		case "C":
			f.said(h, said)
		case "S":
			f.told(h, said)
		}
	}
	for _, h := range all {
		f.next(h, "nothing more")
		if h.epsv {
			f.quirks |= quirkNoEPSV // it asked and never came
		}
	}
	f.against &^= f.quirks
	return f
}

//go:noinline
func noteOnce(list *[]string, word string) {
	if word != "" && !inList(*list, word) && len(*list) < maxLearned {
		*list = append(*list, word)
	}
}

// next is what followed a refusal: one that ended the session was not survived.
func (f *findings) next(h *heard, what string) {
	if h.pending == 0 {
		return
	}
	r := &f.refused[h.pending-1]
	r.next, h.pending = what, 0
	if what != "QUIT" && what != "it hung up" && what != "nothing more" {
		return
	}
	switch {
	case r.verb == "SITE UMASK":
		f.quirks |= quirkSiteUmask
	case r.verb == "MKD" && hasText(r.reply, "taken"):
		f.quirks |= quirkMkdExists
	case r.verb == "ALLO":
		f.quirks |= quirkIgnoreALLO
	case r.verb == "EPSV" && beginsWith(r.reply, "502"):
		f.against |= quirkNoEPSV
	case (r.verb == "PORT" || r.verb == "EPRT") && beginsWith(r.reply, "502"):
		f.against |= quirkNoActive
	}
}

// said is what a command itself tells.
func (f *findings) said(h *heard, line string) {
	h.verb, h.arg, _ = cutText(line, " ")
	h.verb = upperASCII(h.verb)
	var c *command
	if h.verb == "SITE" {
		what, _, _ := cutText(h.arg, " ")
		c = siteIndex[upperASCII(what)]
		h.verb += " " + upperASCII(what)
	} else {
		c = commandIndex[h.verb]
	}
	noteOnce(&f.verbs, h.verb)
	if c != nil {
		f.perm |= c.perm
		if h.verb[0] == 'X' {
			h.verb = c.verb // XMKD is MKD
		}
	}
	f.next(h, h.verb)
	switch h.verb {
	case "USER":
		f.has = nil // what it has is in the next line
		noteOnce(&f.names, h.arg)
	case "PORT", "EPRT":
		f.active = true
	case "PASV":
		if h.epsv {
			f.quirks |= quirkNoEPSV // it gave up on what was offered
		}
		f.passive, h.epsv = true, false
	case "EPSV":
		f.passive = true
	case "QUIT":
		h.quit = true
	case "STOR", "APPE", "STOU":
		f.uploads++
		f.pictures += isPicture(h.arg)
	case "RNFR":
		h.renamed = h.arg
	case "RNTO": // as 1.jpg_ to 1.jpg
		f.pictures += isPicture(h.arg) &^ isPicture(h.renamed)
	}
	if c == nil || !c.login {
		return // it has no path
	}
	if hasText(h.arg, `\`) {
		f.quirks |= quirkBackslash
	}
	parts := strings.FieldsFunc(h.arg, func(r rune) bool { return r == '/' || r == '\\' })
	f.depth = max(f.depth, len(parts))
}

// told is what a reply tells.
func (f *findings) told(h *heard, reply string) {
	code, _ := strconv.Atoi(reply[:min(3, len(reply))])
	switch {
	case h.verb == "EPSV" && code == codeExtPassive:
		h.epsv = true
	case code == codeLoggedIn:
		f.loggedIn = true
		f.clear = f.clear || !beginsWith(f.tls, "TLS 1")
	case code == codeClosing && beginsWith(reply, "421 Idle"):
		f.quirks |= quirkKeepOpen
		return
	case code == codeClosing:
		if _, most, ok := cutText(reply, "this user: at most "); ok {
			f.atOnce, _ = strconv.Atoi(strings.TrimSuffix(most, "."))
		}
	case code == codeNotLoggedIn && hasText(reply, "clear text"), code == codeNeedTLSData:
		f.clear = true
	case code == codeQuota:
		f.full = true
	case code == codeNotLoggedIn && h.verb == "PASS":
		f.loginFailed = true
	case code == codeAborted && hasText(reply, "ALLO"):
		f.quirks |= quirkIgnoreALLO
	}
	if (code >= 500 || code == codeClosing) && h.verb != "" && len(f.refused) < maxRefused {
		f.refused = append(f.refused, refusedVerb{h.verb, reply, ""})
		h.pending = len(f.refused)
	}
}

// event is what happened beside the lines.
func (f *findings) event(h *heard, what string) {
	switch {
	case beginsWith(what, "connected from "):
		from, how, _ := cutText(what[len("connected from "):], ",")
		noteOnce(&f.from, from)
		f.loggedIn = f.loggedIn || hasText(how, "logged in")
	case beginsWith(what, "TLS failed"):
		f.oldTLS = f.oldTLS || hasText(what, "TLS 1.1 or older")
		f.tls = what
	case beginsWith(what, "TLS "):
		f.tls = what
	case beginsWith(what, "lines end"):
		f.lf = true
	case strings.HasSuffix(what, "data connection: ok"):
		if h.epsv {
			f.against |= quirkNoEPSV
		}
		if beginsWith(what, "active") {
			f.against |= quirkNoActive
		}
		h.epsv = false
	case beginsWith(what, "has "):
		f.has = heardUser(what[len("has "):])
	case beginsWith(what, "ended: "):
		f.next(h, "it hung up")
		if !h.quit {
			f.noQuit++
		}
	}
	f.done = f.done || strings.HasSuffix(what, " bytes: ok")
	verb, rest, _ := cutText(what, " of ")
	size, result, isSize := cutText(rest, " bytes: ")
	n, err := strconv.ParseInt(size, 10, 64)
	if !isSize || err != nil || verb != "STOR" && verb != "APPE" && verb != "STOU" {
		return
	}
	f.bytes += n
	f.most = max(f.most, n)
	if result == "client_gone" {
		f.quirks |= quirkHangUp
	}
}

// heardUser reads what asTaped has written, as a user's file that says the same; nil if it
// is no such thing.
func heardUser(what string) *user {
	text, network := "", ""
	for _, field := range splitText(what, "; ") {
		key, value, _ := cutText(field, " ")
		switch {
		case key == "network":
			network = value
		case keyBit(key)&(keyPermissions|keyQuirks) != 0:
			value, _ = userList(value)
			text += key + " = " + value + "\n"
		case key == "sessions":
			text += key + " = " + value + "\n"
		case keyBit(key)&(keyTLS|keyWhenFull) != 0, key == "profile" && value != "":
			text += key + " = " + tomlString(value) + "\n"
		}
	}
	u, errs := parseUserFile("", "d", []byte(text), "/users.d", "/state")
	if len(errs) > 0 {
		return nil
	}
	u.networkProfile = network
	return u
}

// plain tells whether it talks without TLS, whatever else it tries.
func (f *findings) plain() bool { return f.clear || beginsWith(f.tls, "TLS failed") }

// profile is the preset that fits what it does; nil if it needs none, or one would take
// away too much: what reads is no device that only stores.
func (f *findings) profile() *preset {
	device := f.plain() || f.quirks != 0
	switch {
	case f.perm&permRead != 0:
	case f.uploads > 0 && device && f.pictures >= f.uploads:
		return findPreset("camera")
	case f.uploads > 0 && device:
		return findPreset("scanner")
	case f.perm&(permDelete|permRename) == 0 && f.tls != "" && !device && !f.active:
		return findPreset("strict")
	}
	return nil
}

// keys are what the device's file needs, as TOML; nil: nothing that it has not. A profile
// that it has stays, unless that keeps it out: it was chosen by somebody, and may be why
// there is nothing else to find.
func (f *findings) keys() [][2]string {
	has := f.has
	if has == nil {
		return f.beside(nobody, f.profile())
	}
	keep := findPreset(has.Profile)
	keys := f.beside(has, keep)
	if keys == nil || keep != nil && !(keep.values.TLS == "always" && f.plain()) {
		return keys
	}
	return f.beside(has, f.profile())
}

// beside is what is needed beside what the file of has says, with p as its profile.
func (f *findings) beside(has *user, p *preset) (keys [][2]string) {
	need := func(key, value string) { keys = append(keys, [2]string{key, value}) }
	u := *has
	set := u.own
	if p != nil {
		set |= u.fill(p, ^set)
		if p.name != has.Profile {
			need("profile", tomlString(p.name))
		}
	}
	if p := findPreset(has.networkProfile); p != nil {
		u.fill(p, networkKeys&^set)
	}
	if f.plain() && u.TLS != "optional" {
		need("tls", tomlString("optional"))
	}
	if f.perm&^u.Permissions != 0 {
		list, _ := userList((u.Permissions | f.perm).String())
		need("permissions", list)
	}
	if f.atOnce >= u.Sessions {
		need("sessions", itoa(max(findPreset("camera").values.Sessions, 2*f.atOnce)))
	}
	if f.quirks&^u.Quirks != 0 || f.against&u.Quirks != 0 {
		list, _ := userList(((u.Quirks | f.quirks) &^ f.against).String()) // in place of a profile's, so those too
		need("quirks", list)
	}
	return keys
}

// reportLines is text of two columns.
type reportLines []byte

// say adds a line. Not inlined, as usageErr.
//
//go:noinline
func (b *reportLines) say(what, format string, args ...any) {
	*b = fmt.Appendf(*b, "  %-11s ", what)
	*b = append(fmt.Appendf(*b, format, args...), '\n')
}

// report is the findings for people.
func (f *findings) report() string {
	var b reportLines
	b.say("sessions", "%d, from %s", f.sessions, orNone(f.from))
	b.say("names", "%s", orNone(f.names))
	switch {
	case f.oldTLS:
		b.say("TLS", "offers TLS 1.1 or older, which is refused: update its firmware, or let it use plain FTP")
	case f.tls == "":
		b.say("TLS", "none")
	default:
		b.say("TLS", "%s", f.tls)
	}
	if f.lf {
		b.say("lines", "end with LF alone, which needs nothing")
	}
	if f.passive {
		b.say("data", "passive")
	}
	if f.active {
		b.say("data", "active: the way from here to the device has to be open")
	}
	b.say("commands", "%s", orNone(f.verbs))
	if f.uploads > 0 {
		b.say("uploads", "%d, %d bytes in all, the largest %d; paths of up to %d names", f.uploads, f.bytes, f.most, f.depth)
	}
	if f.noQuit > 0 {
		b.say("end", "without QUIT, in %d of its sessions", f.noQuit)
	}
	if inList(f.names, "***") {
		b.say("names", `*** is no user's, so it may be a password; the daemon's log has it ("login failed" or "refused")`)
	}
	if inList(f.names, "anonymous") || inList(f.names, "ftp") {
		b.say("anonymous", "it tries that name; there is no such login here")
	}
	if h := f.has; h != nil && h.Profile+h.networkProfile != "" {
		p, from := h.Profile, ""
		if p == "" {
			p, from = h.networkProfile, ", from its network"
		}
		b.say("profile", "%s, which it has%s", p, from)
	}
	for i, r := range f.refused {
		if i == 10 {
			b.say("refused", "and %d more", len(f.refused)-i)
			break
		}
		b.say("refused", "%s (%s) then %s", r.verb, r.reply, r.next)
	}
	if f.loginFailed {
		b.say("login", `failed; the daemon's log tells why ("login failed")`)
	}
	if f.full {
		b.say("quota", "is full: give it more with --quota or --files, or have its oldest files go with --when-full rotate")
	}
	if !f.done {
		why := "no file went through"
		if !f.loggedIn {
			why = "it did not log in"
		}
		b.say("incomplete", "%s: do what is said below, and record it again for the rest", why)
	}
	return string(b)
}

// tellLearned prints what a dialogue tells, and what to do.
func (inv *invocation) tellLearned(name, dialogue string) error {
	f := readDialogue(dialogue)
	if f.sessions == 0 {
		return errorf("there is no line of a session; a dialogue is what berth learn NAME records")
	}
	fmt.Fprintf(inv.stdout, "\n%s:\n%s", shownText(name), shownLines(f.report()))
	user := name
	if checkUserName(name) != nil {
		user = "NAME"
	}
	keys := f.keys()
	text := "It needs"
	if !f.done {
		text = "So far it needs"
	}
	switch {
	case keys != nil:
		text += ", in users.d/" + user + ".toml:\n"
		for _, k := range keys {
			text += "  " + k[0] + " = " + k[1] + "\n"
		}
		text += "That is: " + setFlags(user, keys) + ", or add for a new user.\n"
	case f.has != nil && (f.has.Profile+f.has.networkProfile != "" || f.has.own != 0):
		text += " nothing that it has not already.\n"
		if p := f.profile(); p != nil && f.has.Profile == "" {
			text += "The profile " + p.name + " fits what it does, too: " + setFlags(user, f.beside(f.has, p)) + "\n"
		}
	default:
		text += " no profile and no quirk.\n"
	}
	fmt.Fprint(inv.stdout, text)
	return nil
}

// setFlags is the command that sets keys.
func setFlags(user string, keys [][2]string) string {
	text := "berth user set " + user
	for _, k := range keys {
		text += " --" + k[0] + " " + shellWord(newReplacer(`"`, "", "[", "", "]", "", ", ", ",").Replace(k[1]))
	}
	return text
}
