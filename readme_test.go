package main

// What people read first must be true: the commands of README.md are run as they stand
// there, its tables are compared with the program, and docs/berth.toml with the defaults.
// This file knows Markdown as README.md uses it, and nothing of how berth works inside.
//
// The convention for README.md: blocks marked sh are run in order in one bash, each only
// if all before it worked. The one that is the line "go run . demo" starts the demo
// instead, in the background. Blocks for other machines, for root or for later are marked
// console, text or toml and are not run.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

const (
	readmeFile    = "README.md"
	readmeDemo    = "go run . demo"
	readmeTimeout = time.Minute // for all blocks together; they take two seconds
)

// readmePrograms are what the sh blocks call beside berth and the shell's own tools.
var readmePrograms = []string{"bash", "curl", "lftp", "nc", "openssl", "python3"}

// readmeLines is README.md, which a test reads from its own directory.
func readmeLines(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile(readmeFile)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

// readmeBlock is one block of commands.
type readmeBlock struct {
	line int // of README.md, where the commands begin
	text string
}

func readmeBlocks(t *testing.T) []readmeBlock {
	t.Helper()
	var blocks []readmeBlock
	inside := false
	for i, line := range readmeLines(t) {
		switch {
		case line == "```sh":
			inside = true
			blocks = append(blocks, readmeBlock{line: i + 2})
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside:
			blocks[len(blocks)-1].text += line + "\n"
		}
	}
	return blocks
}

// readmeTable is the cells of the rows of the table under a heading whose first column
// has this title.
func readmeTable(t *testing.T, heading, title string) [][]string {
	t.Helper()
	return tableRows(t, readmeFile, heading, title)
}

// tableRows is the same of another file; without a heading it is the rows of all tables
// whose first column has that title.
func tableRows(t *testing.T, file, heading, title string) [][]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	under, inside := heading == "", false
	for line := range strings.SplitSeq(string(text), "\n") {
		switch {
		case strings.HasPrefix(line, "## "):
			under, inside = heading == "" || line == "## "+heading, false
		case under && strings.HasPrefix(line, "| "+title+" |"):
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
	if len(rows) == 0 {
		t.Fatalf("%s has no table %q under %q", file, title, heading)
	}
	return rows
}

var readmeCode = regexp.MustCompile("`([^`]+)`")

// readmeWords is what stands between backquotes in a cell.
func readmeWords(cell string) []string {
	var words []string
	for _, m := range readmeCode.FindAllStringSubmatch(cell, -1) {
		words = append(words, m[1])
	}
	return words
}

// readmeSame tells what is in only one of two lists of names.
func readmeSame(t *testing.T, what string, documented, real []string) {
	t.Helper()
	for _, name := range documented {
		if !slices.Contains(real, name) {
			t.Errorf("%s: %q is documented and does not exist", what, name)
		}
	}
	for _, name := range real {
		if !slices.Contains(documented, name) {
			t.Errorf("%s: %q exists and is not documented", what, name)
		}
	}
}

// --- commands ---

// TestREADMECommands does what a newcomer does: every command of README.md, in order.
func TestREADMECommands(t *testing.T) {
	for _, name := range readmePrograms {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		if os.Getenv("BERTH_REQUIRE_CLIENTS") == "1" || os.Getenv("BERTH_README") == "1" {
			t.Fatalf("%s calls %s, which is not installed", readmeFile, name)
		}
		t.Skipf("%s calls %s, which is not installed", readmeFile, name)
	}
	blocks := readmeBlocks(t)
	if len(blocks) < 2 || strings.TrimSpace(blocks[0].text) != readmeDemo {
		t.Fatalf("%s does not begin with %q", readmeFile, readmeDemo)
	}
	// What the commands find in their directory, as in a fresh clone.
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "docs"), os.DirFS("docs")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(readmeFile)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, readmeFile), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "HOME="+t.TempDir(), "XDG_STATE_HOME=", asBerth+"=1", "BERTH="+os.Args[0])
	script := startREADMEDemo(t, dir, env)
	ctx, cancel := context.WithTimeout(t.Context(), readmeTimeout)
	defer cancel()

	var commands strings.Builder
	commands.WriteString("set -eu -o pipefail\nberth() { \"$BERTH\" \"$@\"; }\n")
	for _, b := range blocks[1:] {
		fmt.Fprintf(&commands, "echo '== %s:%d'\n%s", readmeFile, b.line, script.Replace(b.text))
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", commands.String())
	cmd.Dir, cmd.Env = dir, env
	cmd.WaitDelay = replyTime
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the commands of %s: %v\n%s", readmeFile, err, out)
	}
	// What each of them is there to show.
	for _, want := range []string{
		"README.md\n", "213 SHA-256 ", time.Now().Format(" 2006\n"), `direction="upload"`, "lftp.md",
		"Control connection encrypted", "6 ['", "added user ann", "download_rate = \"2MiB\"", "the configuration is good", "removed user ann",
	} {
		if !bytes.Contains(bytes.ReplaceAll(out, []byte("\r"), nil), []byte(want)) {
			t.Errorf("the commands of %s do not print %q:\n%s", readmeFile, want, out)
		}
	}
}

// startREADMEDemo starts the demo on free ports and returns what turns the commands of
// README.md into ones for it: its ports, its password, and this binary for go run, which
// would compile the program again and again.
func startREADMEDemo(t *testing.T, dir string, env []string) *strings.Replacer {
	t.Helper()
	cmd := exec.Command(os.Args[0], "demo", "--control", "127.0.0.1:0", "--datagram", "127.0.0.1:0", "--http", "127.0.0.1:0")
	cmd.Dir, cmd.Env = dir, env
	var errs syncBuffer
	cmd.Stderr = &errs
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGINT)
		<-read
		if err := cmd.Wait(); err != nil {
			t.Errorf("the demo: %v: %s", err, errs.String())
		}
	})
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadString('\n')
	go func() {
		defer close(read)
		io.Copy(io.Discard, lines)
	}()
	m := readyLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
	if m == nil {
		t.Fatalf("the demo printed %q, %v: %s", line, err, errs.String())
	}
	port := func(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
	return strings.NewReplacer( // in this order where two fit
		"nc -u -w 1 127.0.0.1 2121", "nc -u -w 1 127.0.0.1 "+port(m[2]),
		"2121", port(m[1]),
		"9621", port(m[3]),
		"P=PASSWORD\n", "P="+m[4]+"\n",
		"go run .", "berth",
	)
}

// TestFail2banFilter holds the filter's expressions against log lines, some of which have a name that
// was chosen to have somebody else banned. .ci/fail2ban does so with fail2ban itself.
func TestFail2banFilter(t *testing.T) {
	data, err := os.ReadFile("packaging/fail2ban/filter.d/berth.conf")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(data), "failregex = ")
	text, _, _ = strings.Cut(text, "\n\n")
	var patterns []*regexp.Regexp
	for line := range strings.Lines(text) { // Go has no look-ahead, and no need of this one
		line = regexp.MustCompile(`\(\?![^)]*\)`).ReplaceAllString(strings.TrimSpace(line), "")
		patterns = append(patterns, regexp.MustCompile(strings.ReplaceAll(line, "<ADDR>", `([0-9a-f.:]+)`)))
	}
	names := append([]string{"ann", "", `x addr=198.51.100.1 method=`, `" addr=198.51.100.1 method="`, `\" addr=198.51.100.1 method=`, "a\nb",
		`","addr":"198.51.100.1","method":"p","reason":"x"}`}, forgingNames...)
	for _, name := range names {
		for i, format := range []string{"journal", "text", "json"} {
			var log bytes.Buffer
			a := newAuthenticator(nil, limitsConfig{}, slog.New(formatHandler("berth", format, slog.LevelInfo, &log)), nil)
			a.logFailure(name, netip.MustParseAddr("192.0.2.7"), "password", reasonPassword)
			line := strings.TrimSuffix(log.String(), "\n")
			switch format {
			case "journal": // as fail2ban makes a line of a record
				line = "box berth[17]: " + strings.TrimPrefix(line, "<4>")
			default: // it takes the date out
				line = regexp.MustCompile(`^(time=|\{"time":")[^" ]*`).ReplaceAllString(line, "")
			}
			if m := patterns[i/2].FindStringSubmatch(line); m == nil || m[1] != "192.0.2.7" {
				t.Errorf("%s, %q: %q in %q", format, name, m, line)
			}
		}
	}
}

// --- tables ---

// readmeConfigKeys are the keys of berth.toml as "section.key"; what is an array or map of
// tables counts as one.
func readmeConfigKeys() (keys []string) {
	sections := reflect.TypeFor[config]()
	for i := range sections.NumField() {
		section := sections.Field(i)
		if section.Type.Kind() != reflect.Struct {
			keys = append(keys, section.Tag.Get("toml"))
			continue
		}
		for j := range section.Type.NumField() {
			keys = append(keys, section.Tag.Get("toml")+"."+section.Type.Field(j).Tag.Get("toml"))
		}
	}
	return keys
}

// readmeIsDefault compares as text: an empty list that was written is not nil.
func readmeIsDefault(c *config) bool {
	return fmt.Sprintf("%+v", *c) == fmt.Sprintf("%+v", *defaultConfig())
}

func TestREADMEConfigTable(t *testing.T) {
	var documented []string
	for _, row := range readmeTable(t, "Configuration", "key") {
		key := strings.Trim(row[0], "`")
		documented = append(documented, key)
		value := readmeWords(row[1])
		if len(value) == 0 {
			continue // none: an empty table
		}
		got, errs := parseConfig(readmeFile, []byte(key+" = "+value[0]+"\n"))
		if len(errs) > 0 || !readmeIsDefault(got) {
			t.Errorf("%s = %s is not the default: %v", key, value[0], errs)
		}
	}
	readmeSame(t, "the configuration table", documented, readmeConfigKeys())
}

func TestREADMEUserTable(t *testing.T) {
	var documented []string
	for _, row := range readmeTable(t, "Accounts, jails, quota", "key") {
		documented = append(documented, readmeWords(row[0])...)
	}
	readmeSame(t, "the table of user keys", documented, userKeys)
}

func TestREADMEVerbTable(t *testing.T) {
	for heading, client := range map[string]bool{"Running it": false, "The client": true} {
		var documented, real []string
		for _, row := range readmeTable(t, heading, "command") {
			documented = append(documented, strings.Fields(readmeWords(row[0])[0])[1])
		}
		for _, v := range verbs() {
			if v.client == client {
				real = append(real, v.name)
			}
		}
		readmeSame(t, "the table of commands under "+heading, documented, real)
	}
}

// TestMetricsTable holds docs/metrics.md against a scrape of a daemon that has done a bit
// of everything.
func TestMetricsTable(t *testing.T) {
	file, b := writeConfig(t, daemonListen+"tls.session_reuse = \"warn\"\ncommands.t.run = [\"/bin/true\"]\n")
	b.user(t, "ann", "quota_bytes = \"10B\"\non_upload = \"t\"\n")
	b.user(t, "cam", "quota_bytes = \"10B\"\nwhen_full = \"rotate\"\n")
	queue := filepath.Join(b.dir, "state", "on_upload")
	if err := os.Mkdir(queue, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(queue, "0000000000000001.json"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := serveBerth(t, file, nil)
	c := p.dial("control")
	c.want("220 *")
	cfg := clientTLS()
	c.cmd("AUTH TLS", "234 *")
	c.startTLS(cfg)
	c.cmd("PBSZ 0", "200 *")
	c.cmd("PROT P", "200 *")
	c.private = cfg
	c.cmd("USER ann", "331 *")
	c.cmd("PASS secret", "230 *")
	if got := c.store("STOR a", "text"); !strings.HasPrefix(got, "226") {
		t.Fatal(got)
	}
	if got := c.fetch("RETR a"); got != "text" {
		t.Fatalf("the file holds %q", got)
	}
	if got := c.store("STOR b", "more than ten"); !strings.HasPrefix(got, "552") {
		t.Fatal(got)
	}
	c.cmd("EPSV", "229 *")
	d := tls.Client(c.open(), cfg)
	c.cmd("STOR c", "150 *")
	if _, err := io.WriteString(d, "half"); err != nil {
		t.Fatal(err)
	}
	c.cmd("STAT", "211 *")
	c.cmd("ABOR", "426 *", "226 *")
	u, err := net.Dial("udp", p.addrs["datagram"])
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.SetDeadline(time.Now().Add(replyTime))
	io.WriteString(u, "time")
	if _, err := u.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	c.cmd("QUIT", "221 *")
	c.closed()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: replyTime}
	var page []byte
	waitUntil(t, "the command for the upload has run", func() bool {
		resp, err := client.Get("http://" + p.addrs["http"] + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if page, err = io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(page, []byte("berth_commands_total{"))
	})
	labels, kinds := map[string]map[string]bool{}, map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (berth_\w+) (\w+)$`).FindAllStringSubmatch(string(page), -1) {
		labels[m[1]], kinds[m[1]] = map[string]bool{}, m[2]
	}
	for _, m := range regexp.MustCompile(`(?m)^(berth_\w+?)(?:_bucket|_sum|_count)?\{(.*)\} `).FindAllStringSubmatch(string(page), -1) {
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" {
				labels[m[1]][l[1]] = true
			}
		}
	}
	var documented []string
	for _, row := range tableRows(t, "docs/metrics.md", "", "metric") {
		if len(row) != 5 {
			t.Errorf("a row of %d cells: %q", len(row), row)
			continue
		}
		name := strings.Trim(row[0], "`")
		if slices.Contains(documented, name) {
			t.Errorf("%s is documented twice", name)
		}
		documented = append(documented, name)
		if labels[name] == nil {
			continue // told below
		}
		if row[1] != kinds[name] || row[3] == "" {
			t.Errorf("%s is documented as a %q that means %q; it is a %s", name, row[1], row[3], kinds[name])
		}
		want, got := readmeWords(row[2]), slices.Sorted(maps.Keys(labels[name]))
		if slices.Sort(want); !slices.Equal(want, got) {
			t.Errorf("%s: labels %q are documented, %q are there", name, want, got)
		}
	}
	readmeSame(t, "docs/metrics.md", documented, slices.Collect(maps.Keys(labels)))
	p.signal(syscall.SIGTERM)
	p.ended(exitOK)
}

// TestREADMELinks: files that the page points to are there.
func TestREADMELinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)\)`)
	for _, line := range readmeLines(t) {
		for _, m := range link.FindAllStringSubmatch(line, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(m[1]); err != nil {
				t.Error(err)
			}
		}
	}
}

// --- docs/berth.toml ---

// documentedConfig is docs/berth.toml with its defaults, and on demand its examples, no
// longer commented out.
func documentedConfig(t *testing.T, examples bool) []byte {
	t.Helper()
	text, err := os.ReadFile("docs/berth.toml")
	if err != nil {
		t.Fatal(err)
	}
	value := regexp.MustCompile(`^#([a-z0-9_]+ = .*)$`)
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if m := value.FindStringSubmatch(line); m != nil {
			lines[i] = m[1]
		} else if example, ok := strings.CutPrefix(line, "#   "); ok && examples {
			lines[i] = example
		}
	}
	return []byte(strings.Join(lines, "\n"))
}

func TestDocumentedConfig(t *testing.T) {
	// As it stands it changes nothing; nor does it with every default written out.
	if c, errs := checkConfig("docs/berth.toml"); len(errs) > 0 || !readmeIsDefault(c) {
		t.Errorf("docs/berth.toml as it stands: %v", errs)
	}
	text := documentedConfig(t, false)
	c, errs := parseConfig("docs/berth.toml", text)
	if len(errs) > 0 {
		t.Error(errs)
	}
	if !readmeIsDefault(c) {
		t.Errorf("docs/berth.toml means\n%+v, and the defaults are\n%+v", *c, *defaultConfig())
	}

	text = documentedConfig(t, true)
	if _, errs := parseConfig("docs/berth.toml", text); len(errs) > 0 {
		t.Errorf("with its examples: %v", errs)
	}
	var written map[string]any
	if err := toml.Unmarshal(text, &written); err != nil {
		t.Fatal(err)
	}
	readmeHasKeys(t, "", written, reflect.TypeFor[config]())
}

// readmeHasKeys checks that every key of a struct, and of those in it, was written.
func readmeHasKeys(t *testing.T, path string, written any, typ reflect.Type) {
	t.Helper()
	switch typ.Kind() {
	case reflect.Struct:
		if _, isText := reflect.New(typ).Interface().(interface{ UnmarshalText([]byte) error }); isText {
			return
		}
		table, _ := written.(map[string]any)
		for i := range typ.NumField() {
			key := typ.Field(i).Tag.Get("toml")
			value, ok := table[key]
			if !ok {
				t.Errorf("docs/berth.toml does not mention %s%s", path, key)
				continue
			}
			readmeHasKeys(t, path+key+".", value, typ.Field(i).Type)
		}
	case reflect.Slice:
		for _, value := range written.([]any) {
			readmeHasKeys(t, path, value, typ.Elem())
		}
	case reflect.Map:
		for _, value := range written.(map[string]any) {
			readmeHasKeys(t, path, value, typ.Elem())
		}
	}
}
