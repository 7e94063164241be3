// client_shellwords.go is the words of sh: how a line is taken apart, what Tab makes of
// one that is not finished, and the lines of before. It is apart from client_shell.go
// because that is about doing what a line says, and this about typing it.

package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// historyKept is how many lines are kept; the file has twice as many at most.
	historyKept = 1000
	// historyRead bounds what is read of the file.
	historyRead = 256 << 10
	// completeShown is how many names Tab lists.
	completeShown = 100
	// shellSpecial is what needs a backslash in a line.
	shellSpecial = " \t'\"\\*?["
	// shellSigns are the signs of patterns, see plainName.
	shellSigns = "*?["
)

// --- lines ---

// A typedWord is a word of a line.
type typedWord struct {
	text  string // without quotes; signs of patterns that were quoted have a backslash
	start int    // where it begins in the line
}

// splitShellLine takes a line apart as a shell does it: white space between words,
// '...', "..." with \" and \\ in it, and \ before anything. # begins a comment where
// a word would.
func splitShellLine(line string) ([]typedWord, error) {
	words, open := scanShellLine(line)
	if open != 0 {
		return nil, usageErr("a %c has no end", open)
	}
	return words, nil
}

// scanShellLine is splitShellLine for lines that may not be finished; open is the
// quote, or the backslash, that has no end.
func scanShellLine(line string) (words []typedWord, open byte) {
	var word []byte
	in := false
	start := 0
	add := func(c byte, quoted bool) {
		if quoted && strings.IndexByte(shellSigns, c) >= 0 {
			word = append(word, '\\')
		}
		word = append(word, c)
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		if open == 0 && (c == ' ' || c == '\t') {
			if in {
				words = append(words, typedWord{string(word), start})
			}
			word, in = nil, false
			continue
		}
		if !in {
			if c == '#' {
				return words, 0
			}
			in, start = true, i
		}
		switch {
		case open == '\\':
			add(c, true)
			open = 0
		case open == '"' && c == '\\' && i+1 < len(line) && (line[i+1] == '"' || line[i+1] == '\\'):
			i++
			add(line[i], true)
		case open != 0 && c == open:
			open = 0
		case open != 0:
			add(c, true)
		case c == '\'' || c == '"' || c == '\\':
			open = c
		default:
			add(c, false)
		}
	}
	if in {
		words = append(words, typedWord{string(word), start})
	}
	return words, open
}

// quoteShell writes a name as it is typed.
func quoteShell(name string) string {
	var b builder
	for i := 0; i < len(name); i++ {
		if strings.IndexByte(shellSpecial, name[i]) >= 0 || i == 0 && name[i] == '#' {
			b.WriteByte('\\')
		}
		b.WriteByte(name[i])
	}
	return b.String()
}

// lineScanner reads lines of at most n bytes.
//
//go:noinline
func lineScanner(in io.Reader, n int) *bufio.Scanner {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, n)
	return lines
}

// --- completion ---

// shellCompletion answers Tab. What is in a directory is asked for once a line.
type shellCompletion struct {
	s     *shell
	known map[string][]treeEntry // by directory of the box
}

// forget is called when a new line begins.
func (t *shellCompletion) forget() { t.known = nil }

// key is the editor's call for each key.
func (t *shellCompletion) key(line string, pos int, key rune) (newLine string, newPos int, ok bool) {
	if key != '\t' {
		return "", 0, false
	}
	head := line[:pos]
	words, open := scanShellLine(head)
	if len(words) == 0 || open == 0 && strings.HasSuffix(head, " ") && words[len(words)-1].start+len(words[len(words)-1].text) < len(head) {
		words = append(words, typedWord{start: len(head)})
	}
	last := words[len(words)-1]
	typed := plainName.Replace(last.text)
	var found []string
	for _, name := range t.names(words, typed) {
		if beginsWith(name, typed) && shownText(name) == name {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	if len(found) == 0 {
		return line, pos, true
	}
	common := found[0]
	for _, name := range found[1:] {
		n := 0
		for n < len(common) && n < len(name) && common[n] == name[n] {
			n++
		}
		for n > 0 && n < len(common) && !utf8.RuneStart(common[n]) {
			n--
		}
		common = common[:n]
	}
	text := quoteShell(common)
	switch {
	case len(found) == 1 && !strings.HasSuffix(common, "/") && !strings.HasSuffix(common, ":"):
		text += " "
	case len(found) > 1 && common == typed:
		t.list(found)
		return line, pos, true
	}
	head = head[:last.start] + text
	return head + line[pos:], len(head), true
}

// list shows what there is to choose from, without the directory.
func (t *shellCompletion) list(found []string) {
	var b builder
	for i, name := range found {
		if i == completeShown {
			b.WriteString("…and more")
			break
		}
		cut := strings.LastIndexByte(strings.TrimSuffix(name, "/"), '/') + 1
		b.WriteString(name[cut:] + "  ")
	}
	t.s.prompt.show(strings.TrimRight(b.String(), " ") + "\n")
}

// names is what the last of words may become.
func (t *shellCompletion) names(words []typedWord, typed string) (names []string) {
	if len(words) == 1 {
		names = slices.Clone(shellVerbs)
		for _, w := range ownWords() {
			names = append(names, w.name)
		}
		for name := range shellAliases {
			names = append(names, name)
		}
		return names
	}
	name := words[0].text
	if alias := shellAliases[name]; alias != nil {
		name = alias[0]
	}
	switch name {
	case "cd":
		return t.remote(typed, true)
	case "lcd":
		return localNames(typed, true)
	case "lls":
		return localNames(typed, false)
	case "open":
		return hostNames()
	case "help":
		return t.names(words[:1], "")
	}
	v := findVerb(name)
	if v == nil || !inList(shellVerbs, name) {
		return nil
	}
	if beginsWith(typed, "-") {
		for i := range v.options {
			if !slices.ContainsFunc(connectionOptions, func(o option) bool { return o.name == v.options[i].name }) {
				names = append(names, "--"+v.options[i].name)
			}
		}
		return names
	}
	switch {
	case name == "exec":
		before := words[1 : len(words)-1]
		if t.s.conn == nil || slices.ContainsFunc(before, func(w typedWord) bool { return !beginsWith(w.text, "-") }) {
			return nil
		}
		return t.s.conn.welcome.Commands
	case name == "put":
		return localNames(typed, false)
	case name == "sync":
		path, ok := cutPrefix(typed, ":")
		if !ok {
			return localNames(typed, false)
		}
		for _, n := range t.remote(path, false) {
			names = append(names, ":"+n)
		}
		return names
	case v.words == remoteWords || v.words == bothWords:
		return t.remote(typed, false)
	}
	return nil
}

// localNames is what there is here that begins with typed.
func localNames(typed string, directories bool) (names []string) {
	head, rest := typed[:strings.LastIndexByte(typed, '/')+1], typed[strings.LastIndexByte(typed, '/')+1:]
	dir := head
	if dir == "" {
		dir = "."
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	list, _ := f.ReadDir(completeNames)
	for _, e := range list {
		name := e.Name()
		if beginsWith(name, ".") != beginsWith(rest, ".") {
			continue
		}
		st, err := os.Stat(joinPath(dir, name)) // a link to a directory is one
		switch {
		case err == nil && st.IsDir():
			names = append(names, head+name+"/")
		case !directories:
			names = append(names, head+name)
		}
	}
	return names
}

// remote is what there is on the box that begins with typed.
func (t *shellCompletion) remote(typed string, directories bool) (names []string) {
	head, rest := typed[:strings.LastIndexByte(typed, '/')+1], typed[strings.LastIndexByte(typed, '/')+1:]
	s := t.s
	if s.place == nil || s.conn == nil || s.conn.broken() != nil { // nobody waits for a login who presses Tab
		return nil
	}
	dir := joinRemote(s.place.dir, fromHome(head))
	entries, ok := t.known[dir]
	if !ok {
		entries = listNames(s.conn, dir, completeTime)
		if t.known == nil {
			t.known = map[string][]treeEntry{}
		}
		t.known[dir] = entries
	}
	for i := range entries {
		e := &entries[i]
		switch {
		case beginsWith(e.name, ".") != beginsWith(rest, "."):
		case e.kind == 'd' || e.kind == 'l' && directories:
			names = append(names, head+e.name+"/")
		case !directories:
			names = append(names, head+e.name)
		}
	}
	return names
}

// listNames is what is in a directory of the box, as far as completeNames and the time
// go; a listing that is longer is cancelled.
func listNames(c *remote, dir string, within time.Duration) (entries []treeEntry) {
	enough, done := make(chan struct{}), make(chan []treeEntry, 1)
	go func() {
		var list []treeEntry
		_, err := c.list(dir, false, func(line []byte) error {
			// An error would cost the connection.
			var e treeEntry
			if len(list) == completeNames || parseListLine(line, &e) != nil || badRemoteName(e.name) != "" {
				return nil
			}
			if list = append(list, e); len(list) == completeNames {
				close(enough)
			}
			return nil
		})
		if err != nil && len(list) < completeNames {
			list = nil
		}
		done <- list
	}()
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case entries = <-done:
		return entries
	case <-enough:
	case <-late.C:
	}
	if c.send(frameCancel, nil) == nil && c.flush() == nil {
		late.Reset(within)
		select {
		case entries = <-done:
		case <-late.C: // what comes of it later is not for this line
		}
	}
	return entries
}

// --- history ---

// shellHistory is the lines of before, and a file that keeps them: for the user
// alone, bounded, and without lines that have a password in them or begin with a
// space.
type shellHistory struct {
	lines []string // the latest last
	file  *os.File // nil: nothing is kept
	skip  func() bool
}

// historyFile is where lines are kept, or "".
func historyFile() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "berth", "history")
	}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "berth", "history")
	}
	return ""
}

// openHistory reads the file; what cannot be read or kept is done without. Lines are
// not kept while skip is true.
func openHistory(skip func() bool) *shellHistory {
	h := &shellHistory{skip: skip}
	name := historyFile()
	if name == "" || os.MkdirAll(filepath.Dir(name), 0o700) != nil {
		return h
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return h
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 && f.Chmod(0o600) != nil {
		f.Close()
		return h
	}
	h.file = f
	from := max(0, st.Size()-historyRead)
	data, _ := io.ReadAll(io.LimitReader(io.NewSectionReader(f, from, historyRead), historyRead))
	if from > 0 { // the first line may be half a one
		_, data, _ = bytes.Cut(data, []byte{'\n'})
	}
	count := 0
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		count++
		if line != "" && shownText(line) == line {
			h.lines = append(h.lines, line)
		}
	}
	h.lines = h.lines[max(0, len(h.lines)-historyKept):]
	if from > 0 || count > 2*historyKept {
		h.rewrite(name)
	}
	return h
}

// rewrite has the file hold what is kept and no more.
func (h *shellHistory) rewrite(name string) {
	f, err := os.CreateTemp(filepath.Dir(name), ".history-") // 0600
	if err != nil {
		return
	}
	_, err = io.WriteString(f, strings.Join(h.lines, "\n")+"\n")
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	f.Close()
	if err != nil {
		os.Remove(f.Name())
		return
	}
	if f, err = os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0); err == nil {
		h.file.Close()
		h.file = f
	}
}

// Add, Len and At are the editor's calls; 0 is the latest line.
func (h *shellHistory) Add(line string) {
	if h.skip() || strings.TrimSpace(line) == "" || line[0] == ' ' || hasPassword(line) || shownText(line) != line ||
		len(h.lines) > 0 && h.lines[len(h.lines)-1] == line {
		return
	}
	h.lines = append(h.lines, line)
	h.lines = h.lines[max(0, len(h.lines)-historyKept):]
	if h.file != nil {
		h.file.WriteString(line + "\n") // one write, so that of two shells neither spoils the other's
	}
}

func (h *shellHistory) Len() int        { return len(h.lines) }
func (h *shellHistory) At(i int) string { return h.lines[len(h.lines)-1-i] }

// hasPassword tells whether there is an address with a password in the line.
func hasPassword(line string) bool {
	for {
		_, rest, ok := cutText(line, "://")
		if !ok {
			return false
		}
		host, _, _ := cutText(rest, "/")
		if user, _, ok := cutText(host, "@"); ok && hasText(user, ":") {
			return true
		}
		line = rest
	}
}
