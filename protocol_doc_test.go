package main

// docs/protocol.md must be true: its tables are compared with the program's own, its
// reasons and codes with what the source says, its limits with the constants, and its
// session, byte by byte, with one that is held. This file knows Markdown as that page
// uses it.

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var updateProtocol = flag.Bool("update-protocol", false, "write the session in docs/protocol.md anew")

const protocolFile = "docs/protocol.md"

// protocolPage is the page, cut at its headings.
type protocolPage struct {
	text     string
	sections map[string][]string // lines below each heading, up to the next of any level
}

func readProtocol(t *testing.T) *protocolPage {
	t.Helper()
	text, err := os.ReadFile(protocolFile)
	if err != nil {
		t.Fatal(err)
	}
	p := &protocolPage{string(text), map[string][]string{}}
	at := ""
	for line := range strings.Lines(p.text) {
		line = strings.TrimSuffix(line, "\n")
		if _, heading, ok := strings.Cut(line, "# "); ok && strings.Trim(line[:strings.Index(line, " ")], "#") == "" {
			at = heading
			if p.sections[at] != nil {
				t.Errorf("two sections %q", at)
			}
		}
		p.sections[at] = append(p.sections[at], line)
	}
	return p
}

// table is the cells of the rows of the table in a section whose first column has this
// title; nil if there is none.
func (p *protocolPage) table(section, title string) (rows [][]string) {
	inside := false
	for _, line := range p.sections[section] {
		switch {
		case strings.HasPrefix(line, "| "+title+" |"):
			inside = true
		case !strings.HasPrefix(line, "|"):
			inside = false
		case inside && !strings.HasPrefix(line, "| ---"):
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

// column is the words between backquotes in a table's first column.
func (p *protocolPage) column(section, title string) (words []string) {
	for _, row := range p.table(section, title) {
		words = append(words, readmeWords(row[0])...)
	}
	return words
}

// jsonFields are the names that a struct's fields have on the wire, in order; those of
// the embedded answer, which all answers have, are left out.
func jsonFields(typ reflect.Type) (names []string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		switch {
		case f.Type == reflect.TypeFor[answer]():
		case f.Anonymous:
			names = append(names, jsonFields(f.Type)...)
		default:
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			names = append(names, name)
		}
	}
	return names
}

// --- requests, answers, frames ---

func TestProtocolRequests(t *testing.T) {
	p := readProtocol(t)
	answers := map[string]reflect.Type{
		"login": reflect.TypeFor[welcome](), "cd": reflect.TypeFor[cdAnswer](), "time": reflect.TypeFor[timeAnswer](),
		"stat": reflect.TypeFor[statAnswer](), "get": reflect.TypeFor[getAnswer](), "put": reflect.TypeFor[putAnswer](),
		"list": reflect.TypeFor[listEnd](), "usage": reflect.TypeFor[usageAnswer](), "exec": reflect.TypeFor[execAnswer](),
	}
	known := map[string]bool{"do": true, "id": true}
	var documented, real []string
	for section := range p.sections {
		if name := readmeWords(section); name != nil {
			documented = append(documented, name[0])
		}
	}
	for _, r := range requests {
		real = append(real, r.do)
		var fields []string
		for _, f := range strings.FieldsFunc(r.fields, func(c rune) bool { return c == ',' || c == ' ' }) {
			fields = append(fields, f)
			if f == "path" || f == "to" {
				fields = append(fields, f+"_bytes")
			}
		}
		for _, f := range fields {
			known[f] = true
		}
		section := "`" + r.do + "`"
		readmeSame(t, "the fields of "+r.do, p.column(section, "field"), fields)
		var told []string
		if typ := answers[r.do]; typ != nil {
			told = jsonFields(typ)
		}
		readmeSame(t, "what answers to "+r.do+" tell", p.column(section, "answer field"), told)
	}
	readmeSame(t, "the requests", documented, real)
	// The table that was compared says less than it should if the decoder takes more.
	readmeSame(t, "the fields of all requests", slices.Collect(maps.Keys(known)), jsonFields(reflect.TypeFor[request]()))
	readmeSame(t, "the fields of all answers", p.column("Requests and answers", "answer field"), []string{"id", "code", "text", "reason"})
	readmeSame(t, "the lines of who", p.column("`who`", "line field"), jsonFields(reflect.TypeFor[whoEntry]()))
	readmeSame(t, "the lines of quotas", p.column("`quotas`", "line field"), jsonFields(reflect.TypeFor[usageLine]()))
	readmeSame(t, "messages", p.column("`listen`", "message field"), jsonFields(reflect.TypeFor[messageFrame]()))

	var line map[string]any
	b := append(appendFields([]byte{'{'}, "\xff", &entry{link: "to"}), '}')
	if err := json.Unmarshal(b, &line); err != nil {
		t.Fatal(err)
	}
	readmeSame(t, "the lines of list", p.column("`list`", "line field"), slices.Collect(maps.Keys(line)))

	for what, words := range map[string][]string{"signal": signalNames(), "digest": digestNames()} {
		for _, w := range words {
			if !strings.Contains(p.text, "`"+w+"`") {
				t.Errorf("%s %s is not documented", what, w)
			}
		}
	}
}

func TestProtocolFrameTable(t *testing.T) {
	p := readProtocol(t)
	directions := map[string]string{}
	for _, row := range p.table("Frames", "type") {
		directions[readmeWords(row[0])[0]] = row[1]
	}
	types := []byte(toServer + toClient)
	slices.Sort(types)
	for _, c := range string(slices.Compact(types)) {
		want := "both"
		if !strings.ContainsRune(toClient, c) {
			want = "to the server"
		} else if !strings.ContainsRune(toServer, c) {
			want = "to the client"
		}
		if got := directions[string(c)]; got != want {
			t.Errorf("frames of type %c: direction %q is documented, not %q", c, got, want)
		}
		delete(directions, string(c))
	}
	if len(directions) > 0 {
		t.Errorf("documented and not there: %v", directions)
	}
}

func TestProtocolLimits(t *testing.T) {
	bytesOf := func(n int) string {
		s := strconv.Itoa(n)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.0f seconds", d.Seconds()) }
	real := map[string]string{
		"payload of a frame":                        bytesOf(maxFrame) + " bytes",
		"request before login":                      bytesOf(maxStranger) + " bytes",
		"payload of `F`, `S` and `W` to the server": bytesOf(maxStranger) + " bytes",
		"`id`":                              bytesOf(maxID) + " bytes",
		"looked ahead while a request runs": bytesOf(maxAhead) + " bytes",
		"directories below each other, `recursive`":      bytesOf(maxDepth),
		"one argument of a command":                      bytesOf(maxArgument) + " bytes",
		"all arguments of a command, or a command line":  bytesOf(maxArguments) + " bytes",
		"stdin held for a command that does not read it": bytesOf(stdinAhead) + " bytes",
		"`text` of `echo` and `upper`, as it goes back":  bytesOf(maxEcho) + " bytes",
		"message":                                bytesOf(maxSaid) + " bytes",
		"messages at once":                       bytesOf(sayBurst),
		"then one message in":                    fmt.Sprintf("%d milliseconds", sayEvery.Milliseconds()),
		"messages that wait for a slow listener": bytesOf(chatKept),
		"quiet before the server sends `P`":      seconds(quietPing),
		"failed logins on one connection":        bytesOf(failedLimit),
		"unknown requests on one connection":     bytesOf(abuseLimit),
		"TLS handshake":                          seconds(handshakeTime),
		"answers that the client does not read":  seconds(writeTimeout),
	}
	p := readProtocol(t)
	for _, row := range p.table("Limits", "limit") {
		if want := real[row[0]]; row[1] != want {
			t.Errorf("%s: %q is documented, it is %q", row[0], row[1], want)
		}
		delete(real, row[0])
	}
	for name := range real {
		t.Errorf("%s is not documented", name)
	}
	// What is said in passing.
	for section, figures := range map[string][]string{
		"Order":                    {bytesOf(maxAhead) + " bytes ahead", bytesOf(stdinAhead) + " bytes of stdin", fmt.Sprintf("for %.0f seconds", quietPing.Seconds())},
		"Requests and answers":     {fmt.Sprintf("at most %d bytes", maxID)},
		"What ends the connection": {fmt.Sprintf("%d of them", abuseLimit), fmt.Sprintf("%d of them", failedLimit)},
		"`login`":                  {bytesOf(maxStranger) + " bytes"},
		"`list`":                   {fmt.Sprintf("%d directories", maxDepth), bytesOf(sortBound) + " names"},
		"`exec`":                   {fmt.Sprintf("`%d`", defaultRows), fmt.Sprintf("`%d`", defaultCols)},
		"`echo`":                   {bytesOf(maxEcho) + " bytes"},
		"`upper`":                  {bytesOf(maxEcho) + " bytes"},
		"`say`":                    {bytesOf(maxSaid) + " bytes", fmt.Sprintf("%d at once, then one in %d", sayBurst, sayEvery.Milliseconds())},
		"`listen`":                 {fmt.Sprintf("%d wait", chatKept)},
	} {
		text := strings.Join(p.sections[section], "\n")
		for _, f := range figures {
			if !strings.Contains(text, f) {
				t.Errorf("%s does not say %q", section, f)
			}
		}
	}
}

func TestProtocolRunner(t *testing.T) {
	p := readProtocol(t)
	readmeSame(t, "a program", p.column("The runner", "program field"), jsonFields(reflect.TypeFor[program]()))
	readmeSame(t, "its result", p.column("The runner", "result field"), jsonFields(reflect.TypeFor[runnerResult]()))
	for _, word := range append(jsonFields(reflect.TypeFor[sandbox]()), jsonFields(reflect.TypeFor[terminalSize]())...) {
		if !strings.Contains(strings.Join(p.sections["The runner"], "\n"), "`"+word+"`") {
			t.Errorf("the runner's %s is not documented", word)
		}
	}
}

// --- reasons ---

// sourceReasons is every word that the source has for reason, each with the codes that
// stand beside it.
func sourceReasons(t *testing.T) map[string]map[string]bool {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	codes := map[string]string{} // value of each constant
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == len(v.Names) {
				for i, name := range v.Names {
					if lit, ok := v.Values[i].(*ast.BasicLit); ok && lit.Kind == token.INT && strings.HasPrefix(name.Name, "code") {
						codes[name.Name] = lit.Value
					}
				}
			}
			return true
		})
	}
	found := map[string]map[string]bool{}
	add := func(word, code ast.Expr) {
		lit, ok := word.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING || lit.Value == `""` {
			return
		}
		w, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		if found[w] == nil {
			found[w] = map[string]bool{}
		}
		if id, ok := code.(*ast.Ident); ok && codes[id.Name] != "" {
			found[w][codes[id.Name]] = true
		}
	}
	for _, f := range files {
		for _, d := range f.Decls {
			fn, _ := d.(*ast.FuncDecl)
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if id, ok := n.Type.(*ast.Ident); ok && id.Name == "protocolError" && len(n.Elts) == 3 {
						add(n.Elts[1], n.Elts[0])
					}
					var word, code ast.Expr
					for _, e := range n.Elts {
						if kv, ok := e.(*ast.KeyValueExpr); ok {
							switch key, _ := kv.Key.(*ast.Ident); {
							case key == nil:
							case key.Name == "Reason":
								word = kv.Value
							case key.Name == "Code":
								code = kv.Value
							}
						}
					}
					if word != nil {
						add(word, code)
					}
				case *ast.CallExpr:
					name := ""
					switch fun := n.Fun.(type) {
					case *ast.Ident:
						name = fun.Name
					case *ast.SelectorExpr:
						name = fun.Sel.Name
					}
					if (name == "refuse" || name == "replyReason") && len(n.Args) >= 3 {
						add(n.Args[1], n.Args[0])
					}
				case *ast.AssignStmt:
					for i, left := range n.Lhs {
						if sel, ok := left.(*ast.SelectorExpr); ok && sel.Sel.Name == "Reason" && len(n.Rhs) == len(n.Lhs) {
							add(n.Rhs[i], nil)
						}
					}
				case *ast.ReturnStmt:
					switch {
					case fn == nil:
					case (fn.Name.Name == "replyFor" || fn.Name.Name == "mayNot") && len(n.Results) == 3:
						add(n.Results[1], n.Results[0])
					case fn.Name.Name == "reasonOf":
						add(n.Results[0], nil)
					}
				case *ast.ValueSpec:
					if id, ok := n.Type.(*ast.Ident); ok && id.Name == "programEnd" {
						for _, v := range n.Values {
							add(v, nil)
						}
					}
				}
				return true
			})
		}
	}
	return found
}

func TestProtocolReasons(t *testing.T) {
	p := readProtocol(t)
	real := sourceReasons(t)
	if len(real) < 30 {
		t.Fatalf("only %d reasons were found in the source", len(real))
	}
	documented := map[string][]string{}
	for _, row := range p.table("Reasons", "reason") {
		documented[readmeWords(row[0])[0]] = readmeWords(row[1])
	}
	for _, m := range regexp.MustCompile("`([a-z_]+)` \\(`(\\d+)`\\)").FindAllStringSubmatch(strings.Join(p.sections["Reasons"], "\n"), -1) {
		documented[m[1]] = []string{m[2]}
	}
	readmeSame(t, "reasons", slices.Collect(maps.Keys(documented)), slices.Collect(maps.Keys(real)))
	for word, codes := range real {
		for code := range codes {
			if !slices.Contains(documented[word], code) {
				t.Errorf("reason %s comes with code %s; documented: %q", word, code, documented[word])
			}
		}
		for _, code := range documented[word] {
			if len(codes) > 0 && !codes[code] && word != "counting" { // usage assigns it where its code is not
				t.Errorf("reason %s never comes with code %s", word, code)
			}
		}
	}
	for _, row := range p.table("`exec`", "code") {
		if word := readmeWords(row[1])[0]; real[word] == nil || !slices.Contains(documented[word], readmeWords(row[0])[0]) {
			t.Errorf("exec ends with %q: no such reason, or not with this code", word)
		}
	}
}

// --- the session ---

// protocolStep is what one side sends, and what to say about it.
type protocolStep struct {
	note   string
	client bool
	data   []byte
}

// protocolSession holds the session of the page, and returns all that went over the wire.
func protocolSession(t *testing.T) (steps []protocolStep) {
	t.Helper()
	file, b := writeConfig(t, daemonListen+"server.name = \"box\"\nexec.sandbox = \"best-effort\"\ncommands.capitals.run = [\"/usr/bin/tr\", \"a-z\", \"A-Z\"]\n")
	b.user(t, "ann", "commands = [\"capitals\"]\n")
	d := serveBerth(t, file, nil)
	c := d.dial("control")
	c.conn.SetDeadline(time.Now().Add(replyTime))

	frames := func(f ...any) (b []byte) {
		for i := 0; i < len(f); i += 2 {
			b = appendFrame(b, f[i].(frameType), []byte(f[i+1].(string)))
		}
		return b
	}
	send := func(note string, data []byte) {
		t.Helper()
		if _, err := c.conn.Write(data); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, protocolStep{note, true, data})
	}
	r := bufio.NewReader(c.conn)
	line := func(note string) {
		t.Helper()
		text, err := r.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, protocolStep{note, false, text})
	}
	want := func(notes ...string) {
		t.Helper()
		for _, note := range notes {
			kind, payload, err := readFrame(r, nil)
			if err != nil {
				t.Fatalf("%s: %v", note, err)
			}
			steps = append(steps, protocolStep{note, false, appendFrame(nil, kind, payload)})
		}
	}
	line("The greeting.")
	send("The way into frames and the first of them, in one segment.",
		append([]byte("FRAM 1\r\n"), frames(frameRequest, `{"do":"login","user":"ann","password":"secret"}`)...))
	line("The last line.")
	want("Logged in.")
	send("A put, without waiting for anything: R, D and F.", frames(
		frameRequest, `{"do":"put","id":1,"path":"note.txt","size":13,"mtime":"2026-11-21T12:00:00Z","mode":"0640"}`,
		frameData, "Hello, berth\n",
		frameEnd, `{"size":13,"sha256":"2418ad11ad3beeb35da20df55a08711ec72a079df58789d01e27aff83825bd18"}`))
	want("The put may come.", "It is complete.")
	send("A get.", frames(frameRequest, `{"do":"get","id":2,"path":"note.txt"}`))
	want("It comes.", "The file.", "Its end, with the digest.", "Done.")
	send("A command with its stdin, and the end of that.", frames(frameRequest, `{"do":"exec","id":3,"command":"capitals","stdin":true}`, frameData, "loud\n", frameEnd, ""))
	want("It runs.", "Its stdout.", "How it ended.")
	send("The end.", frames(frameRequest, `{"do":"quit"}`))
	want("Goodbye, and the server closes.")
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("behind the end: %q, %v", rest, err)
	}
	d.signal(syscall.SIGTERM)
	d.ended(exitOK)
	return steps
}

// protocolDump is steps as the page shows them: sixteen bytes a line, and a line of its
// own for each frame's header.
func protocolDump(t *testing.T, steps []protocolStep) string {
	t.Helper()
	var b strings.Builder
	rows := func(side string, data []byte, note string) {
		for row := range slices.Chunk(data, 16) {
			shown := bytes.Map(func(c rune) rune {
				if c < ' ' || c >= 0x7f {
					return '.'
				}
				return c
			}, row)
			fmt.Fprintln(&b, strings.TrimRight(fmt.Sprintf("%s  %-47s  |%s|%*s  %s", side, fmt.Sprintf("% x", row), shown, 16-len(row), "", note), " "))
			note = ""
		}
	}
	for i, s := range steps {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "# %s\n", s.note)
		side, data := "S", s.data
		if s.client {
			side = "C"
		}
		if end := bytes.Index(data, []byte("\r\n")); end >= 0 && data[0] != 0 {
			rows(side, data[:end+2], "")
			data = data[end+2:]
		}
		for len(data) > 0 {
			kind, n, err := parseHeader(data)
			if err != nil {
				t.Fatal(err)
			}
			rows(side, data[:frameHeader], fmt.Sprintf("%s, %d bytes", kind, n))
			rows(side, data[frameHeader:frameHeader+n], "")
			data = data[frameHeader+n:]
		}
	}
	return b.String()
}

var protocolRow = regexp.MustCompile(`^([CS])  ((?:[0-9a-f]{2} ?){1,16}) *\|`)

// parseDump undoes protocolDump.
func parseDump(t *testing.T, text string) (steps []protocolStep) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if note, ok := strings.CutPrefix(line, "# "); ok {
			steps = append(steps, protocolStep{note: note})
			continue
		}
		if line == "" {
			continue
		}
		m := protocolRow.FindStringSubmatch(line)
		if m == nil || len(steps) == 0 {
			t.Fatalf("%s: what is the line %q?", protocolFile, line)
		}
		row, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		last := &steps[len(steps)-1]
		last.client = m[1] == "C"
		last.data = append(last.data, row...)
	}
	return steps
}

var protocolVaries = regexp.MustCompile(`"(version|cpu_ms|max_rss)":("[^"]*"|\d+)`)

// masked is what went one way, decoded, without what differs from run to run.
func (s protocolStep) masked(t *testing.T) (parts []string) {
	t.Helper()
	data := s.data
	if end := bytes.Index(data, []byte("\r\n")); end >= 0 && data[0] != 0 {
		parts = append(parts, string(data[:end]))
		data = data[end+2:]
	}
	in := newFrameReader(data)
	for in.buffered() {
		ok, err := in.next()
		if !ok || err != nil {
			t.Fatalf("%s: no frame begins with % x (%v)", s.note, data, err)
		}
		payload, ok := in.whole()
		if !ok {
			t.Fatalf("%s: a frame of type %s wants %d bytes", s.note, in.kind, in.left)
		}
		parts = append(parts, in.kind.String()+" "+protocolVaries.ReplaceAllString(string(payload), `"$1":*`))
	}
	return parts
}

// TestProtocolSession holds the session of the page again.
func TestProtocolSession(t *testing.T) {
	p := readProtocol(t)
	before, rest, ok := strings.Cut(p.text, "update-protocol . -->\n\n```text\n")
	shown, after, closed := strings.Cut(rest, "```\n")
	if !ok || !closed {
		t.Fatalf("%s has no session", protocolFile)
	}
	steps := protocolSession(t)
	if *updateProtocol {
		text := before + "update-protocol . -->\n\n```text\n" + protocolDump(t, steps) + "```\n" + after
		if err := os.WriteFile(protocolFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	documented := parseDump(t, shown)
	if again := protocolDump(t, documented); again != shown {
		t.Errorf("the right half of the dump is not the left one, which is\n%s", again)
	}
	if len(documented) != len(steps) {
		t.Fatalf("%d steps are documented, there are %d; -update-protocol writes them anew", len(documented), len(steps))
	}
	for i, got := range documented {
		want := steps[i]
		if got.note != want.note || got.client != want.client || !slices.Equal(got.masked(t), want.masked(t)) {
			t.Errorf("documented: %q\n%q\nreal: %q\n%q\n-update-protocol writes it anew", got.note, got.masked(t), want.note, want.masked(t))
		}
	}
}
