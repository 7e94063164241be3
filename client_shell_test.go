package main

// sh: lines from another program in this process, and a person's at a terminal, with
// completion, history and interrupts, as the program itself. What the verbs do is
// tested with them.

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestSplitShellLine(t *testing.T) {
	for _, c := range []struct {
		line string
		want string // words with | between them; "!" before what is open at the end
	}{
		{"", ""}, {"  ", ""}, {"ls", "ls"}, {"  ls  -l\ta ", "ls|-l|a"}, {`get 'a b' "c d"`, "get|a b|c d"}, {`a\ b`, "a b"}, {`'a'"b"c`, "abc"},
		{`''`, ""}, {`x '' y`, "x||y"}, {`"a\"b\\c\d"`, `a"b\c\d`}, {`'a\b'`, `a\b`}, {"*.jpg", "*.jpg"}, {`'*.jpg' \* "[a]?"`, `\*.jpg|\*|\[a]\?`},
		{"ls # all", "ls"}, {"a#b", "a#b"}, {"'open", "!'"}, {`"open\"`, `!"`}, {`open\`, `!\`}, {"ä ö", "ä|ö"},
	} {
		words, err := splitShellLine(c.line)
		var got []string
		for _, w := range words {
			got = append(got, w.text)
		}
		if open, ok := strings.CutPrefix(c.want, "!"); ok {
			if err == nil || !strings.Contains(err.Error(), "a "+open+" has no end") || exitCode(err) != exitUsage {
				t.Errorf("%q: %v", c.line, err)
			}
			continue
		}
		if err != nil || strings.Join(got, "|") != c.want {
			t.Errorf("%q: %q, %v; want %q", c.line, got, err, c.want)
		}
	}
	for _, name := range []string{"plain", "a b", `q'"\`, "*?[]", "#x", "tab\there", "ä"} {
		words, err := splitShellLine("get " + quoteShell(name))
		if err != nil || len(words) != 2 || plainName.Replace(words[1].text) != name {
			t.Errorf("%q is quoted as %q, which is %v, %v", name, quoteShell(name), words, err)
		}
	}
}

func TestClientShellLines(t *testing.T) {
	b := newClientBox(t, "", "")
	b.put(t, "sub/dir/deep", "deep file\n")
	b.put(t, "a b", "two words\n")
	b.put(t, "x*y", "a star\n")
	b.put(t, "xzy", "no star\n")
	here := t.TempDir()
	t.Chdir(here)
	os.WriteFile("local", []byte("from here\n"), 0o600)
	for _, c := range []struct {
		name  string
		lines string
		code  int
		out   string
		errs  string
	}{
		{"nothing", "", 0, "", ""},
		{"comments", "# one\n\n  # two\n", 0, "", ""},
		{"cd", "pwd\ncd sub\npwd\ncd dir\npwd\ncd ..\npwd\ncd -\npwd\ncd\npwd\ncd ~/sub/./dir\npwd\n", 0, "/\n/sub\n/sub/dir\n/sub\n/sub/dir\n/\n/sub/dir\n", ""},
		{"no such directory", "cd nowhere\npwd\n", 1, "", "berth sh: line 1: cd: /nowhere: *\n"},
		{"a file", "cd 'a b'\n", 1, "", "berth sh: line 1: cd: /a b: *\n"},
		{"no last one", "cd -\n", 2, "", "berth sh: line 1: cd: there was no other directory yet\n"},
		{"cat", "cat 'a b'\ncat a\\ b\n", 0, "two words\ntwo words\n", ""},
		{"a star that is none", "cat 'x*y'\n", 0, "a star\n", ""},
		{"a pattern", "cat x*y\n", 0, "a star\nno star\n", ""},
		{"below the directory", "cd sub\ncat dir/deep\n", 0, "deep file\n", ""},
		{"get", "get 'a b'\n!cat 'a b'\n", 0, "*two words\n", ""},
		{"get and a name", "get sub/dir/deep here\n!cat here\n", 0, "*deep file\n", ""},
		{"mget", "cd sub\nmget dir/deep ../xzy\n!cat deep xzy\n", 0, "*deep file\nno star\n", ""},
		{"put", "cd sub\nput local\ncat local\n", 0, "*from here\n", ""},
		{"put and a name", "put local there\ncat there\n", 0, "*from here\n", ""},
		{"lcd", "lcd ..\nlcd " + filepath.Base(here) + "\nlpwd\n!pwd\n", 0, here + "\n" + here + "\n", ""},
		{"lls", "lls -d local\n", 0, "local\n", ""},
		{"local exit codes", "!exit 3\npwd\n", 3, "", ""},
		{"exec, begun in the directory", "cd sub\nexec ls\n", 0, "dir\nlocal\n", ""},
		{"exec, as it was typed", `exec echo "a  b" | tr a-z A-Z` + "\n", 0, "A  B\n", ""},
		{"exec of a named command", "exec say 'a  *'\n", 0, "a  *", ""},
		{"exec that fails", "exec exit 9\npwd\n", 9, "", ""},
		{"exec does not eat the lines", "exec cat\npwd\n", 0, "/\n", ""},
		{"time and ping", "time -q\nping -q -c 1\n", 0, "*Z\n1 sent, 1 came back*\n", ""},
		{"aliases", "mkdir new\nrename there new/there\ndelete new/there\nrm -r new\n", 0, "", ""},
		{"help", "help\n", 0, "*  cd [DIR] *  !COMMAND *  get *", ""},
		{"help of one", "help get\n? cd\n", 0, "Usage: berth get *cd [DIR]\n*", ""},
		{"-h", "ls -h\n", 0, "Usage: berth ls *", ""},
		{"quit", "quit\nnonsense\n", 0, "", ""},
		{"unknown", "pwd\nnonsense\n", 2, "/\n", "berth sh: line 2: there is no word \"nonsense\"; help lists them\n"},
		{"too much", "pwd x\n", 2, "", "berth sh: line 1: pwd : unexpected \"x\"\n"},
		{"an option that is none", "ls --nonsense\n", 2, "", "berth sh: line 1: ls: there is no option --nonsense*\n"},
		{"not here", "serve\n", 2, "", "berth sh: line 1: serve is a command of its own: !berth serve\n"},
		{"not needed", "binary\n", 0, "", "binary is not needed here*\n"},
		{"closed", "close\nls\n", 2, "", "berth sh: line 2: ls: on no box; open HOST goes to one\n"},
		{"opened", "close\nopen -p " + b.port + " ann@127.0.0.1:sub\npwd\n", 0, "/sub\n", ""},
		{"opened in vain", "open -p 1 ann@127.0.0.1\n", 3, "", "berth sh: line 1: open: cannot connect *\n"},
		{"no end", "cat 'a\n", 2, "", "berth sh: line 1: a ' has no end*\n"},
	} {
		r := b.verb(t, strings.NewReader(c.lines), "sh")
		if r.code != c.code || !wildcard(c.out, r.out) || !wildcard(c.errs, r.errs) {
			t.Errorf("%s: exit code %d, %.400q, %.300q; want %d, %q, %q", c.name, r.code, r.out, r.errs, c.code, c.out, c.errs)
		}
		os.Chdir(here)
	}
	if r := b.verb(t, strings.NewReader("pwd\n"), "sh", "-p", b.port, "ann@127.0.0.1:sub"); r.code != 0 || r.out != "/sub\n" {
		t.Errorf("%+v", r)
	}
	if r := b.verb(t, strings.NewReader("pwd\n"), "sh", "-p", b.port, "ann@127.0.0.1:nowhere"); r.code != exitFailed {
		t.Errorf("%+v", r)
	}
}

func TestClientShellOnATerminal(t *testing.T) {
	b := newClientBox(t, "", "")
	b.put(t, "photos/first picture.jpg", "")
	b.put(t, "photos/second", "")
	b.put(t, "notes", "some notes\n")
	start := func(t *testing.T) *clientTerminal {
		c := newClientTerminal(t, 24, 100, "sh")
		c.until("ann@127.0.0.1:/> ")
		return c
	}
	t.Run("words", func(t *testing.T) {
		c := start(t)
		c.keys("cd photos\r")
		c.until("ann@127.0.0.1:/photos> ")
		c.keys("nonsense\r")
		c.until("there is no word \"nonsense\"; help lists them\r\nann@127.0.0.1:/photos> ")
		c.keys("half a line\x03")
		c.until("\r\nann@127.0.0.1:/photos> ")
		c.keys("\x1b\x03") // Escape alone, and then Ctrl-C
		c.until("\r\nann@127.0.0.1:/photos> ")
		c.keys("exec echo r\"\"eady; exec tr a-z A-Z\r")
		c.until("\nready\r\n")
		c.keys("typed for it\n\x04")
		c.until("TYPED FOR IT\r\n")
		c.until("photos> ")
		c.keys("!stty size; stty -a | grep -o ' icanon'\r")
		c.until("24 100\r\n icanon\r\n")
		c.until("photos> ")
		c.keys("\x04")
		c.ended(0)
	})
	t.Run("completion", func(t *testing.T) {
		c := start(t)
		c.keys("ca\t") // cat, and nothing else
		c.keys("no\t\r")
		c.until("some notes\r\n")
		c.until("/> ")
		c.keys("cd ph\t\r")
		c.until("/photos> ")
		c.keys("ls -l fi\t")
		c.until(`first\ picture.jpg `)
		c.keys("\x03")
		c.until("/photos> ")
		c.keys("cat \t")
		c.until("first picture.jpg  second\r\n")
		c.keys("\x03")
		c.until("/photos> ")
		c.keys("exec sa\tword\r")
		c.until("word\r\n")
		c.until("word")
		c.until("/photos> ")
		c.keys("\x04")
		c.ended(0)
	})
	t.Run("history", func(t *testing.T) {
		c := start(t)
		c.keys("pwd\r")
		c.until("/\r\n")
		c.until("/> ")
		c.keys("!echo one\r")
		c.until("one\r\n")
		c.until("/> ")
		c.keys("open berth://ann:secret@127.0.0.1:1\r")
		c.until("cannot connect")
		c.until("/> ")
		c.keys(" !echo private\r")
		c.until("private\r\n")
		c.until("/> ")
		c.keys("\x1b[A\r") // the last that is kept
		c.until("one\r\n")
		c.until("/> ")
		c.keys("quit\r")
		c.ended(0)
		file := filepath.Join(os.Getenv("HOME"), ".local/state/berth/history")
		data, err := os.ReadFile(file)
		if err != nil || strings.Contains(string(data), "secret") || strings.Contains(string(data), "private") || !strings.Contains(string(data), "!echo one\nquit\n") {
			t.Errorf("%q, %v", data, err)
		}
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		c = start(t) // another one has it, too
		c.keys("\x10\x10\r")
		c.until("one\r\n")
		c.until("/> ")
		c.keys("quit\r")
		c.ended(0)
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		c := start(t)
		c.keys("ping -c 0\r")
		c.until("answer 1 ")
		c.keys("\x03")
		c.until("1 sent, 1 came back")
		c.until("interrupted\r\nann@127.0.0.1:/> ")
		c.keys(`exec trap "echo got it; exit 5" INT; echo r""eady; while :; do sleep 0.01; done` + "\r")
		c.until("\nready\r\n")
		c.keys("\x03")
		c.until("got it\r\n")
		c.until("/> ")
		c.keys("pwd\r")
		c.until("/\r\n")
		c.until("/> ")
		c.keys("\x04")
		c.ended(0)
	})
	t.Run("a lost connection, and messages", func(t *testing.T) {
		c := start(t)
		b.cut()
		c.keys("pwd\rexec echo back\r")
		c.until("; connected again\r\nback\r\n")
		c.until("/> ")
		c.keys("unfini")
		c.until("unfini")
		b.srv.mu.Lock()
		for _, s := range b.srv.sessions {
			b.srv.chat.wall([]*listener{{s: s}}, "we close at six")
		}
		b.srv.mu.Unlock()
		c.until("operator: we close at six\r\nann@127.0.0.1:/> unfini")
		c.resize(24, 60)
		c.cmd.Process.Signal(syscall.SIGTERM)
		c.ended(143)
	})
	t.Run("on no box", func(t *testing.T) {
		url := os.Getenv("BERTH_URL")
		t.Setenv("BERTH_URL", "")
		c := newClientTerminal(t, 24, 100, "sh")
		c.until("berth> ")
		c.keys("ls\r")
		c.until("on no box; open HOST goes to one\r\nberth> ")
		c.keys("open " + url + "\r")
		c.until("ann@127.0.0.1:/> ")
		c.keys("close\r")
		c.until("berth> ")
		c.keys("bye\r")
		c.ended(0)
	})
}

func TestShellHistory(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_STATE_HOME", dir)
	file := filepath.Join(dir, "berth", "history")
	os.Mkdir(filepath.Dir(file), 0o700)
	var old []string
	for range 3 * historyKept {
		old = append(old, "line "+strings.Repeat("x", len(old)%7))
	}
	old[len(old)-2] = "clear the \x1b[2J screen"
	os.WriteFile(file, []byte(strings.Join(old, "\n")+"\n"), 0o644)
	skip := false
	h := openHistory(func() bool { return skip })
	if h.Len() != historyKept || h.At(0) != old[len(old)-1] || h.At(1) != old[len(old)-3] {
		t.Fatalf("%d lines, %q", h.Len(), h.At(0))
	}
	for _, line := range []string{"one", "one", "", "   ", " secretly", "open berth://ann:pw@box", "open berth://ann@box/a:b@c", "\x1b[A", "two"} {
		h.Add(line)
	}
	skip = true
	h.Add("given up")
	want := []string{"two", "open berth://ann@box/a:b@c", "one"}
	if got := []string{h.At(0), h.At(1), h.At(2)}; h.Len() != historyKept || !slices.Equal(got, want) {
		t.Errorf("%d lines, %q; want %q", h.Len(), got, want)
	}
	data, _ := os.ReadFile(file)
	st, _ := os.Stat(file)
	if n := strings.Count(string(data), "\n"); n != historyKept+3 || !strings.HasSuffix(string(data), "\none\nopen berth://ann@box/a:b@c\ntwo\n") || st.Mode().Perm() != 0o600 {
		t.Errorf("%d lines, %v", n, st.Mode())
	}
	if h := openHistory(nil); h.Len() != historyKept || h.At(0) != "two" {
		t.Errorf("%d lines", h.Len())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "berth", ".history-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A directory of any size is listed as far as anybody reads it.
func TestListNames(t *testing.T) {
	b := newClientBox(t, "", "")
	for i := range completeNames + 500 {
		if err := os.WriteFile(filepath.Join(b.home, "f"+strings.Repeat("x", i%50)+string(rune('a'+i%26))+strings.Repeat("y", i/50)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	inv := clientInvocation(t, nil, nil, nil, "sh")
	p, err := inv.hostPlace("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.box.main()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(listNames(c, "/", replyTime)); n != completeNames {
		t.Errorf("%d names", n)
	}
	if n := len(listNames(c, "/nowhere", replyTime)); n != 0 {
		t.Errorf("%d names of nothing", n)
	}
	if _, err := c.do(remoteRequest{Do: "time"}); err != nil {
		t.Error(err)
	}
}
