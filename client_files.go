// client_files.go is the client's verbs for files that stay where they are, ls to
// chmod, and what the words of all client verbs mean: which box, which path, which
// names a pattern stands for. Transfers are client_copy.go's.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"
)

// maxNames bounds what a pattern may stand for; they are kept in memory.
const maxNames = 100_000

// --- names ---

// A place is what a word of the command line stands for: a path on a box, or here.
type place struct {
	box   *box   // nil: here
	path  string // as requests take it; as open(2) takes it, if it is here
	dir   string // on a box: what path begins with and nobody has typed now, so that it is no pattern whatever is in it
	word  string // on a box: the rest of path, as it was typed
	shown string // as it was typed
}

// place says what a word means where it may be of either side: scp's rule.
func (inv *invocation) place(word string) (place, error) {
	if w := inv.within; w != nil {
		if p, ok := cutPrefix(word, ":"); ok {
			return inv.remotePlace(p)
		}
		return place{path: word, shown: word}, nil
	}
	t, err := parseTarget(word)
	if err != nil {
		return place{}, err
	}
	if !t.remote {
		return place{path: word, shown: word}, nil
	}
	return inv.at(t, word)
}

// remotePlace says what a word means where only a box makes sense: without a host
// it is a path where the shell is, or on the box of BERTH_URL.
func (inv *invocation) remotePlace(word string) (place, error) {
	if w := inv.within; w != nil {
		return newPlace(w.box, w.dir, word, word), nil
	}
	var t target
	var err error
	if word != "" {
		if t, err = parseTarget(word); err != nil {
			return place{}, err
		}
	}
	if !t.remote {
		d, ok, err := defaultTarget()
		if err != nil {
			return place{}, err
		}
		if !ok {
			return place{}, usageErr("%s names no box; write it as HOST:%s, or set BERTH_URL", configQuote(word), shownText(word))
		}
		p, err := inv.at(d, word)
		if err != nil {
			return place{}, err
		}
		return newPlace(p.box, p.path, word, word), nil
	}
	return inv.at(t, word)
}

// hostPlace is for words that are a host, perhaps with a directory; none is
// BERTH_URL's, or the shell's.
func (inv *invocation) hostPlace(word string) (place, error) {
	switch {
	case inv.within != nil && word == "":
		return place{box: inv.within.box, path: inv.within.dir, shown: inv.within.dir}, nil
	case word == "":
		t, ok, err := defaultTarget()
		if err != nil || !ok {
			return place{}, cmpErr(err, usageErr("which box? berth %s HOST, or set BERTH_URL", inv.verb.name))
		}
		return inv.at(t, t.typed)
	}
	t, err := parseTarget(word)
	if err == nil && !t.remote {
		t, err = parseTarget(word + ":")
	}
	if err != nil {
		return place{}, err
	}
	return inv.at(t, word)
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// at is a place on a box.
func (inv *invocation) at(t target, word string) (place, error) {
	if t.password != "" {
		word = t.typed // without it
	}
	b, err := inv.box(t)
	if err != nil {
		return place{}, err
	}
	return newPlace(b, b.spec.base, t.path, word), nil
}

// newPlace is what word means in a directory of a box.
//
//go:noinline
func newPlace(b *box, dir, word, shown string) place {
	return place{box: b, path: joinRemote(dir, word), dir: dir, word: word, shown: shown}
}

// plain is where the word leads if it is one name, and no pattern.
func (p place) plain() string { return joinRemote(p.dir, plainName.Replace(p.word)) }

// joinRemote is a path below a directory; one from the top stays itself.
//
//go:noinline
func joinRemote(dir, p string) string {
	switch {
	case beginsWith(p, "/") || dir == "":
		return p
	case p == "":
		return dir
	}
	return strings.TrimSuffix(dir, "/") + "/" + p
}

// hasPattern tells whether a path has signs of a pattern in it; behind a backslash
// they are letters.
func hasPattern(p string) bool { return strings.ContainsAny(literal.Replace(p), "*?[") }

// literal takes out what is no pattern, plainName makes a name of it.
var (
	literal   = newReplacer(`\*`, "", `\?`, "", `\[`, "", `\]`, "")
	plainName = newReplacer(`\*`, "*", `\?`, "?", `\[`, "[", `\]`, "]")
)

// expand is what a place stands for: itself, or the names that its pattern finds.
func (inv *invocation) expand(p place) ([]place, error) {
	if !hasPattern(p.word) {
		p.path = p.plain()
		return []place{p}, nil
	}
	var places []place
	bad := 0
	err := inv.patiently(p.box, func(c *remote) (err error) {
		places, bad, err = p.match(c)
		return err
	})
	if bad > 0 {
		inv.complain(p.shown, errorf("%d names that no box should send were left out", bad))
		inv.refused = true
	}
	return places, err
}

// match is what the place's pattern finds, and how many names were none.
func (p place) match(c *remote) (places []place, bad int, err error) {
	found := []string{p.dir}
	if beginsWith(p.word, "/") {
		found[0] = "/"
	}
	parts := strings.FieldsFunc(p.word, func(r rune) bool { return r == '/' })
	for i, part := range parts {
		last := i == len(parts)-1
		if !hasPattern(part) {
			for k := range found {
				found[k] = joinRemote(found[k], plainName.Replace(part))
			}
			continue
		}
		var next []string
		for _, dir := range found {
			_, err := c.list(dir, false, func(line []byte) error {
				var e treeEntry
				if err := parseListLine(line, &e); err != nil {
					return err
				}
				switch {
				case badRemoteName(e.name) != "":
					bad++
				case !globMatches(part, e.name):
				case !last && e.kind != 'd' && e.kind != 'l':
				case len(next) >= maxNames:
					return errorf("%s stands for more than %d names", shownText(p.shown), maxNames)
				default:
					next = append(next, joinRemote(dir, e.name))
				}
				return nil
			})
			if err != nil && !refusedFor(err, "not_found") && !refusedFor(err, "not_directory") {
				return nil, bad, errorf("%s: %w", shownText(p.shown), err)
			}
		}
		found = next
	}
	slices.Sort(found)
	for _, name := range found {
		if last := parts[len(parts)-1]; !hasPattern(last) { // the pattern was of a directory
			if _, err := c.do(remoteRequest{Do: "stat", Path: name}); err != nil {
				continue
			}
		}
		places = append(places, place{box: p.box, path: name, shown: name})
	}
	if len(places) == 0 { // as in a shell, it is a name then
		p.path = p.plain()
		if _, err := c.do(remoteRequest{Do: "stat", Path: p.path}); err == nil {
			return []place{p}, bad, nil
		} else if isConnError(err) {
			return nil, bad, err
		}
		return nil, bad, &verbError{exitFailed, fmt.Sprintf("%s: nothing has such a name", shownText(p.shown))}
	}
	return places, bad, nil
}

// remotePlaces is what all words of a verb stand for.
func (inv *invocation) remotePlaces(words []string) ([]place, error) {
	var all []place
	for _, word := range words {
		p, err := inv.remotePlace(word)
		if err != nil {
			return nil, err
		}
		some, err := inv.expand(p)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// each does something to all places that the words stand for. A refusal is said and
// the rest goes on; a lost connection ends it.
func (inv *invocation) each(words []string, do func(c *remote, p place) error) error {
	var worst error
	for _, word := range words {
		p, err := inv.remotePlace(word)
		var all []place
		if err == nil {
			all, err = inv.expand(p)
		}
		for i := 0; i < len(all) && err == nil; i++ {
			var c *remote
			if c, err = all[i].box.main(); err == nil {
				if err = do(c, all[i]); err != nil && exitCode(err) == exitFailed && inv.ctx.Err() == nil {
					inv.complain(all[i].shown, err)
					worst, err = cmpErr(worst, err), nil
				}
			}
		}
		switch {
		case err == nil:
		case exitCode(err) == exitFailed && inv.ctx.Err() == nil:
			inv.complain("", err)
			worst = cmpErr(worst, err)
		default:
			return err
		}
	}
	if worst != nil {
		return exitWith(exitFailed)
	}
	return nil
}

// complain says what went wrong with one name.
func (inv *invocation) complain(name string, err error) {
	if name != "" {
		name = shownText(name) + ": "
	}
	if err.Error() != "" {
		fmt.Fprintf(inv.stderr, "berth %s: %s%v\n", inv.verb.name, name, err)
	}
}

// did tells with -v, or as JSON, what was done.
func (inv *invocation) did(what string, p place, more map[string]any) {
	switch {
	case inv.on("json"):
		line := map[string]any{"verb": inv.verb.name, "path": p.path}
		for k, v := range more {
			line[k] = v
		}
		b, _ := json.Marshal(line)
		fmt.Fprintf(inv.stdout, "%s\n", progressEscape(b))
	case inv.on("verbose"):
		fmt.Fprintf(inv.stdout, "%s %s\n", what, shownText(p.shown))
	}
}

// colours tells whether stdout takes them.
func (inv *invocation) colours(when string) bool {
	switch when {
	case "always":
		return true
	case "never":
		return false
	}
	return isTerminal(inv.stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// --- ls ---

// A lsPrinter prints entries as ls(1) does.
type lsPrinter struct {
	inv      *invocation
	out      *bufio.Writer
	terminal bool
	colour   bool
	now      time.Time
	short    []string // names for columns
}

func runLs(inv *invocation) error {
	words := inv.args
	if len(words) == 0 {
		words = []string{""}
	}
	// A host alone is what most people mean by it.
	for i, word := range words {
		if t, err := parseTarget(word); err == nil && !t.remote && inv.within == nil && word != "" {
			if _, ok, _ := defaultTarget(); !ok && !hasText(word, "/") {
				words[i] = word + ":"
			}
		}
	}
	l := &lsPrinter{inv: inv, out: bufio.NewWriterSize(inv.stdout, 64<<10), terminal: isTerminal(inv.stdout), colour: inv.colours(inv.str("color")), now: time.Now()}
	first := true
	err := inv.each(words, func(c *remote, p place) error {
		head := ""
		if (len(words) > 1 || p.shown != words[0]) && !inv.on("json") { // several words, or what a pattern stands for
			a, err := c.do(remoteRequest{Do: "stat", Path: p.path})
			if err != nil {
				return err
			}
			if a.Type != "dir" {
				mode, _ := strconv.ParseUint(a.Mode, 8, 32)
				first = false
				return l.entry(&treeEntry{name: p.shown, kind: (a.Type + "o")[0], size: a.Size, mtime: a.MTime.UnixNano(), mode: uint32(mode)})
			}
			if head = l.name(p.shown) + ":\n"; !first {
				head = "\n" + head
			}
			l.columns()
			l.out.WriteString(head)
		}
		first = false
		return l.list(c, p)
	})
	l.columns()
	if ferr := l.out.Flush(); err == nil && ferr != nil {
		err = localError(ferr)
	}
	return err
}

// list prints a directory, or one name. Entries of a directory are printed as they
// come; sorted, since berth sorts all but huge ones.
func (l *lsPrinter) list(c *remote, p place) error {
	inv := l.inv
	recursive := inv.on("recursive")
	dir := ""
	started := false
	a, err := c.list(p.path, recursive, func(line []byte) error {
		var e treeEntry
		if err := parseListLine(line, &e); err != nil {
			return err
		}
		if inv.on("json") {
			_, err := l.out.Write(append(progressEscape(bytes.Clone(line)), '\n'))
			return err
		}
		if !inv.on("all") && hasText("/"+e.name, "/.") && e.name != baseName(p.path) {
			return nil // hidden, or below what is; what was named itself is not
		}
		if d := path.Dir(e.name); recursive && (d != dir || !started) {
			l.columns()
			if started {
				fmt.Fprintln(l.out)
			}
			head := cmp.Or(p.shown, ".")
			switch {
			case d == ".":
			case strings.HasSuffix(head, ":"): // where box: begins
				head += d
			default:
				head = joinRemote(head, d)
			}
			fmt.Fprintf(l.out, "%s:\n", l.name(strings.TrimSuffix(head, ":")))
			dir = d
		}
		started = true
		if recursive {
			e.name = baseName(e.name)
		}
		return l.entry(&e)
	})
	l.columns()
	if err == nil && a.Skipped > 0 {
		return errorf("%d directories could not be read on the box", a.Skipped)
	}
	return err
}

// name is a name as it may be printed: a terminal is protected from all that is not
// a sign, a pipe from what breaks lines.
func (l *lsPrinter) name(s string) string {
	if l.terminal || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return shownText(s)
	}
	return s
}

// Colours as ls(1) has them without a database.
const (
	colourDir  = "\x1b[01;34m"
	colourLink = "\x1b[01;36m"
	colourRun  = "\x1b[01;32m"
	colourOff  = "\x1b[0m"
)

func (l *lsPrinter) entry(e *treeEntry) error {
	name := l.name(e.name)
	kind, tint := "-", ""
	switch {
	case e.kind == 'd':
		kind, tint = "d", colourDir
	case e.kind == 'l':
		kind, tint = "l", colourLink
	case e.kind == 'o':
		kind = "?"
	case e.mode&0o111 != 0:
		tint = colourRun
	}
	if l.colour && tint != "" {
		name = tint + name + colourOff
	}
	if !l.inv.on("long") {
		if l.terminal {
			l.short = append(l.short, name)
			if len(l.short) >= maxColumns {
				l.columns()
			}
			return nil
		}
		_, err := fmt.Fprintln(l.out, name)
		return err
	}
	if e.kind == 'l' {
		name += " -> " + l.name(e.target)
	}
	_, err := fmt.Fprintf(l.out, "%s%s %9s  %s  %s\n", kind, modeLetters(e.mode), humanBytes(e.size), l.when(e.mtime), name)
	return err
}

// maxColumns is how many names are kept to be printed in columns.
const maxColumns = 4096

// columns prints the names that wait, down and then across.
func (l *lsPrinter) columns() {
	if len(l.short) == 0 {
		return
	}
	cols := 80
	if f, ok := l.inv.stdout.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			cols = w
		}
	}
	wide := 0
	widths := make([]int, len(l.short))
	for i, name := range l.short {
		plain := name
		if l.colour {
			plain = strings.TrimSuffix(plain, colourOff)
			if i := strings.IndexByte(plain, 'm'); beginsWith(plain, "\x1b[") && i > 0 {
				plain = plain[i+1:]
			}
		}
		widths[i] = screenCells(plain)
		wide = max(wide, widths[i]+2)
	}
	across := max(cols/wide, 1)
	down := (len(l.short) + across - 1) / across
	for row := range down {
		for i := row; i < len(l.short); i += down {
			l.out.WriteString(l.short[i])
			if i+down < len(l.short) {
				l.out.WriteString(strings.Repeat(" ", wide-widths[i]))
			}
		}
		l.out.WriteByte('\n')
	}
	l.short = l.short[:0]
}

// when is a time as ls -l writes it, in local time.
func (l *lsPrinter) when(ns int64) string {
	t := time.Unix(0, ns).Local()
	if age := l.now.Sub(t); age > 182*24*time.Hour || age < -time.Hour {
		return t.Format("Jan _2  2006")
	}
	return t.Format("Jan _2 15:04")
}

// modeLetters is a mode as ls -l writes it, without the type.
func modeLetters(mode uint32) string {
	b := []byte("rwxrwxrwx")
	for i := range b {
		if mode&(0o400>>i) == 0 {
			b[i] = '-'
		}
	}
	return string(b)
}

// --- the others ---

func runCat(inv *invocation) error {
	return inv.fetchTo(inv.args, "-")
}

func runRm(inv *invocation) error {
	return inv.each(inv.args, func(c *remote, p place) error {
		if path.Clean("/"+p.path) == "/" {
			return usageErr("%s: the top directory stays; name what is in it", shownText(p.shown))
		}
		_, err := c.do(remoteRequest{Do: "remove", Path: p.path, Recursive: inv.on("recursive")})
		switch {
		case refusedFor(err, "not_found") && inv.on("force"):
			return nil
		case refusedFor(err, "not_empty"):
			return newError("it is a directory with something in it; -r deletes that, too")
		case err != nil:
			return err
		}
		inv.did("deleted", p, nil)
		return nil
	})
}

func runMv(inv *invocation) error {
	last := len(inv.args) - 1
	to, err := inv.remotePlace(inv.args[last])
	if err != nil {
		return err
	}
	to.path = to.plain()
	from, err := inv.remotePlaces(inv.args[:last])
	if err != nil {
		return err
	}
	for _, p := range from {
		if p.box != to.box {
			return usageErr("%s and %s are not on the same box; get and put move between boxes", shownText(p.shown), shownText(to.shown))
		}
	}
	c, err := to.box.main()
	if err != nil {
		return err
	}
	into := strings.HasSuffix(to.path, "/") || to.path == ""
	if a, err := c.do(remoteRequest{Do: "stat", Path: to.path}); err == nil && a.Type == "dir" {
		into = true
	} else if err != nil && !refusedFor(err, "not_found") {
		return err
	} else if len(from) > 1 || into {
		return &verbError{exitFailed, fmt.Sprintf("%s: there is no such directory to move to", shownText(to.shown))}
	}
	var worst error
	for _, p := range from {
		target := to.path
		if into {
			target = joinRemote(target, baseName(p.path))
		}
		if _, err := c.do(remoteRequest{Do: "move", Path: p.path, To: target}); err != nil {
			if isConnError(err) || inv.ctx.Err() != nil {
				return err
			}
			inv.complain(p.shown, err)
			worst = exitWith(exitFailed)
			continue
		}
		inv.did("moved to "+shownText(target)+":", p, map[string]any{"to": target})
	}
	return worst
}

func runMkdir(inv *invocation) error {
	return inv.each(inv.args, func(c *remote, p place) error {
		if _, err := c.do(remoteRequest{Do: "mkdir", Path: p.path, Recursive: inv.on("parents")}); err != nil {
			return err
		}
		inv.did("made", p, nil)
		return nil
	})
}

func runTouch(inv *invocation) error {
	when := ""
	if s := inv.str("date"); s != "" {
		t, err := parseWhen(s)
		if err != nil {
			return usageErr("%v", err)
		}
		when = rfc3339(t)
	}
	return inv.each(inv.args, func(c *remote, p place) error {
		if _, err := c.do(remoteRequest{Do: "touch", Path: p.path, MTime: when}); err != nil {
			return err
		}
		inv.did("touched", p, nil)
		return nil
	})
}

// aTime is the check of an option that is a time.
func aTime(s string) error {
	_, err := parseWhen(s)
	return err
}

// parseWhen reads a time as people write it: RFC 3339, or local.
func parseWhen(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errorf("%s is not a time; write 2026-11-21T12:00:00Z, or 2026-11-21 12:00 as the clock here says", configQuote(s))
}

func runChmod(inv *invocation) error {
	mode := inv.args[0]
	if n, err := strconv.ParseUint(mode, 8, 32); err != nil || n > 0o777 {
		return usageErr("%s is not a mode; write octal digits as 644 or 0750", configQuote(mode))
	}
	return inv.each(inv.args[1:], func(c *remote, p place) error {
		if _, err := c.do(remoteRequest{Do: "chmod", Path: p.path, Mode: mode}); err != nil {
			return err
		}
		inv.did("changed", p, map[string]any{"mode": mode})
		return nil
	})
}

func runHash(inv *invocation) error {
	algorithm := inv.str("algorithm")
	return inv.each(inv.args, func(c *remote, p place) error {
		a, err := c.do(remoteRequest{Do: "hash", Path: p.path, Algorithm: algorithm})
		if err != nil {
			return err
		}
		digest := map[string]string{"sha256": a.SHA256, "sha512": a.SHA512, "sha1": a.SHA1, "md5": a.MD5, "crc32": a.CRC32}[algorithm]
		if _, err := hex.DecodeString(digest); err != nil || digest == "" {
			return &connError{text: fmt.Sprintf("%s tells the digest %s, which is none", c.host, configQuote(digest))}
		}
		if inv.on("json") {
			inv.did("", p, map[string]any{algorithm: digest})
			return nil
		}
		// As sha256sum(1): a name with a line's end is escaped, and the line says so.
		name, mark := strings.TrimPrefix(path.Clean("/"+p.path), "/"), ""
		if p.shown == p.path || hasPattern(p.shown) {
			name = p.path
		}
		if strings.ContainsAny(name, "\\\n\r") {
			mark = `\`
			name = newReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(name)
		}
		if isTerminal(inv.stdout) {
			name = shownText(name)
		}
		fmt.Fprintf(inv.stdout, "%s%s  %s\n", mark, digest, name)
		return nil
	})
}

func runDf(inv *invocation) error {
	words := inv.args
	if len(words) == 0 {
		words = []string{""}
	}
	out := func(n int64) string {
		if inv.on("bytes") {
			return strconv.FormatInt(n, 10)
		}
		return humanBytes(n)
	}
	rows := [][]string{{"box", "used", "quota", "left", "use", "files", "of", "disk free"}}
	for _, word := range words {
		p, err := inv.hostPlace(word)
		if err != nil {
			return err
		}
		c, err := p.box.main()
		if err != nil {
			return err
		}
		a, err := c.do(remoteRequest{Do: "usage"})
		if err != nil {
			return err
		}
		if inv.on("json") {
			line := map[string]any{"box": p.box.spec.name, "user": c.welcome.User, "quota_bytes": a.QuotaBytes, "quota_files": a.QuotaFiles}
			for name, n := range map[string]*int64{"bytes": a.Bytes, "files": a.Files, "free": a.Free} {
				if n != nil {
					line[name] = *n
				}
			}
			b, _ := json.Marshal(line)
			fmt.Fprintf(inv.stdout, "%s\n", progressEscape(b))
			continue
		}
		row := []string{c.welcome.User + "@" + p.box.spec.name, "?", "none", "-", "-", "?", "none", "?"}
		if a.Bytes != nil {
			row[1] = out(*a.Bytes)
		}
		if a.Files != nil {
			row[5] = strconv.FormatInt(*a.Files, 10)
		}
		if a.QuotaBytes > 0 {
			row[2] = out(a.QuotaBytes)
			if a.Bytes != nil {
				row[3] = out(max(a.QuotaBytes-*a.Bytes, 0))
				row[4] = strconv.FormatInt(*a.Bytes*100/a.QuotaBytes, 10) + "%"
			}
		}
		if a.QuotaFiles > 0 {
			row[6] = strconv.FormatInt(a.QuotaFiles, 10)
		}
		if a.Free != nil {
			row[7] = out(*a.Free)
		}
		rows = append(rows, row)
	}
	if !inv.on("json") {
		writeTable(inv.stdout, rows)
	}
	return nil
}

// writeTable aligns rows: the first column to the left, the others to the right.
func writeTable(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, row := range rows {
		for i, cell := range row {
			if i == 0 {
				fmt.Fprintf(w, "%-*s", widths[i], shownText(cell))
			} else {
				fmt.Fprintf(w, "  %*s", widths[i], cell)
			}
		}
		fmt.Fprintln(w)
	}
}
