package main

// What a person types and what comes of it: testdata/script holds sessions at a shell
// with the client, against a berth serve of their own each. A script has in it the
// files it begins with; box/ is the home of ann on the box. This file starts what
// they need and knows nothing of what they show. The terminal, which a script has
// not, is in client_terminal_test.go.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptSession has a berth that a test starts leave the terminal of whoever runs the
// tests: it would ask there for passwords, and the scripts are about machines.
const scriptSession = "BERTH_TEST_SESSION"

func init() {
	if os.Getenv(scriptSession) != "" {
		syscall.Setsid() // fails where it leads a session already, with a terminal of the test's
	}
}

var updateScript = flag.Bool("update-script", false, "write what cmp finds into testdata/script")

// TestClientScript plays testdata/script. Beside testscript's own commands there are:
//
//	box [CONFIG [USER]]      start a server; the files have more lines for berth.toml and users.d/ann.toml.
//	                         The alias box and $PORT, $PORT6, $SOCKET, $FINGERPRINT, $CERT, $BOX (its berth.toml) lead there,
//	                         and $BERTH_PASSWORD logs in
//	[!] berth WORD ...       run the client
//	status N                 the last berth ended with this exit code
//	lines FILE ...           FILE, or stdout or stderr, has these lines, in any order, and no others; * stands for anything
//	random FILE SIZE         make a file of letters that do not repeat, the same each time
//	same FILE FILE           they have the same bytes; cmp would show what is different, which of a large file is a lot
//	expand FILE ...          put the environment's values for $NAME in files
//	impostor FILE            $IMPOSTOR is the port of a server that sends a line of FILE when a client comes,
//	                         and the next one for each line it gets
//	garble OLD NEW           $GARBLED is the port of a way to the box on which OLD becomes NEW
//	cut SIZE                 $CUT is the port of a way to the box on which a connection ends after so much, in either direction
func TestClientScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		UpdateScripts:      *updateScript,
		RequireUniqueNames: true,
		Setup:              scriptSetup,
		Condition: func(name string) (bool, error) {
			switch name {
			case "ipv6":
				l, err := net.Listen("tcp", "[::1]:0")
				if err == nil {
					l.Close()
				}
				return err == nil, nil
			case "landlock":
				return landlockABI() > 0, nil
			}
			return false, fmt.Errorf("there is no condition %q", name)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"berth":    scriptBerth,
			"status":   scriptStatus,
			"box":      scriptBox,
			"lines":    scriptLines,
			"random":   scriptRandom,
			"same":     scriptSame,
			"expand":   scriptExpand,
			"impostor": scriptImpostor,
			"garble":   scriptGarble,
			"cut":      scriptCut,
		},
	})
}

// A scriptState is what the commands of one script share.
type scriptState struct {
	code int // of the last berth
}

type scriptKey struct{}

func scriptSetup(env *testscript.Env) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bin, home := filepath.Join(env.WorkDir, ".bin"), filepath.Join(env.WorkDir, "home")
	if err := errors.Join(os.MkdirAll(bin, 0o755), os.MkdirAll(home, 0o755), os.Symlink(self, filepath.Join(bin, "berth"))); err != nil {
		return err
	}
	env.Setenv("PATH", bin+":"+env.Getenv("PATH"))
	env.Setenv("HOME", home)
	env.Setenv("USER", "ann")
	env.Setenv("TERM", "xterm")
	env.Setenv("TZ", "UTC")
	env.Setenv("LC_ALL", "C.UTF-8")
	env.Setenv(asBerth, "1")
	env.Setenv(scriptSession, "1")
	env.Values[scriptKey{}] = new(scriptState)
	return nil
}

func scriptBerth(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("berth", args...)
	code := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	ts.Value(scriptKey{}).(*scriptState).code = code
	if (code != 0) != neg {
		ts.Fatalf("exit code %d", code)
	}
}

func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: status N")
	}
	if code := strconv.Itoa(ts.Value(scriptKey{}).(*scriptState).code); code != args[0] {
		ts.Fatalf("exit code %s", code)
	}
}

func scriptLines(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || neg {
		ts.Fatalf("usage: lines FILE LINE ...")
	}
	want := slices.Clone(args[1:])
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		line = strings.TrimSuffix(line, "\n")
		i := slices.IndexFunc(want, func(pattern string) bool {
			return regexp.MustCompile("(?s)^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*") + "$").MatchString(line)
		})
		if i < 0 {
			ts.Fatalf("%s has the line %q; still wanted: %q", args[0], line, want)
		}
		want = slices.Delete(want, i, i+1)
	}
	if len(want) > 0 {
		ts.Fatalf("%s does not have %q", args[0], want)
	}
}

func scriptRandom(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: random FILE SIZE")
	}
	var size byteSize
	ts.Check(size.UnmarshalText([]byte(args[1])))
	var seed [32]byte
	copy(seed[:], args[0])
	data := make([]byte, size)
	rand.NewChaCha8(seed).Read(data)
	for i, b := range data {
		data[i] = "abcdefghijklmnopqrstuvwxyz012345"[b%32]
	}
	ts.Check(os.MkdirAll(filepath.Dir(ts.MkAbs(args[0])), 0o755))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o644))
}

func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: same FILE FILE")
	}
	one, two := ts.ReadFile(args[0]), ts.ReadFile(args[1])
	if at := 0; one != two {
		for at < min(len(one), len(two)) && one[at] == two[at] {
			at++
		}
		ts.Fatalf("%s has %d bytes, %s has %d; they differ from byte %d on", args[0], len(one), args[1], len(two), at)
	}
}

func scriptExpand(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range args {
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
	}
}

// --- servers ---

func scriptBox(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) > 2 || neg {
		ts.Fatalf("usage: box [CONFIG [USER]]")
	}
	more := [2]string{}
	for i, name := range args {
		more[i] = ts.ReadFile(name)
	}
	work := ts.Getenv("WORK")
	dir := filepath.Join(work, ".box")
	socket := filepath.Join(dir, "sock")
	pair, err := testCertificate()
	ts.Check(err)
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		ts.Check(os.MkdirAll(filepath.Dir(name), 0o700))
		ts.Check(os.WriteFile(name, []byte(text), 0o600))
		return name
	}
	control := `"127.0.0.1:0"`
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		control += `, "[::1]:0"`
	}
	ts.Check(os.MkdirAll(filepath.Join(work, "box"), 0o755))
	cert := file("state/tls/cert.pem", string(pair[0]))
	file("state/tls/key.pem", string(pair[1]))
	file("users.d/ann.toml", fmt.Sprintf("password = %q\nhome = %q\nuid = %d\n", testHash, filepath.Join(work, "box"), os.Getuid())+more[1])
	// Not durable: fsync is tested elsewhere, and takes longer than all the rest.
	config := file("berth.toml", fmt.Sprintf("%s\n[server]\nname = \"box\"\nstate_dir = %q\nusers_dir = %q\n[log]\nformat = \"json\"\n"+
		"[transfer]\ndurable = false\n[listen]\ncontrol = [%s]\ndatagram = [\"127.0.0.1:0\"]\nhttp = []\nlocal = [%q]\n",
		more[0], filepath.Join(dir, "state"), filepath.Join(dir, "users.d"), control, socket))

	addrs := scriptServe(ts, config)
	for _, addr := range addrs["control"] {
		host, port, err := net.SplitHostPort(addr)
		ts.Check(err)
		ts.Setenv(map[string]string{"127.0.0.1": "PORT", "::1": "PORT6"}[host], port)
	}
	for _, addr := range addrs["datagram"] {
		_, port, err := net.SplitHostPort(addr)
		ts.Check(err)
		ts.Setenv("UDP", port)
	}
	block, _ := pem.Decode(pair[0])
	ts.Setenv("FINGERPRINT", fingerprintOf(block.Bytes))
	ts.Setenv("SOCKET", socket)
	ts.Setenv("BOX", config)
	ts.Setenv("CERT", cert)
	ts.Setenv("BERTH_PASSWORD", "secret")
	hosts := filepath.Join(ts.Getenv("HOME"), ".config", "berth", "config.toml")
	if _, err := os.Stat(hosts); err != nil {
		ts.Check(os.MkdirAll(filepath.Dir(hosts), 0o700))
		ts.Check(os.WriteFile(hosts, fmt.Appendf(nil, "[hosts.box]\nhost = \"127.0.0.1\"\nport = %s\nuser = \"ann\"\n", ts.Getenv("PORT")), 0o600))
	}
}

// scriptServe runs berth serve until the script ends, and returns where it listens. An
// error in its log is one of the script.
func scriptServe(ts *testscript.TestScript, config string) (addrs map[string][]string) {
	cmd := exec.Command(os.Args[0], "serve", "--config", config)
	cmd.Env = append(os.Environ(), asBerth+"=1", scriptSession+"=1")
	log, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	serving := make(chan string, 1)
	var read sync.WaitGroup
	var bad bytes.Buffer
	read.Go(func() {
		defer close(serving)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var line struct{ Level, Msg, Listeners string }
			err := json.Unmarshal(lines.Bytes(), &line)
			if err != nil || line.Level == "ERROR" {
				fmt.Fprintf(&bad, "%s\n", lines.Bytes())
			}
			if line.Msg == "serving" {
				serving <- line.Listeners
			}
		}
	})
	ts.Defer(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		read.Wait()
		if err := cmd.Wait(); err != nil || bad.Len() > 0 {
			ts.Fatalf("the box: %v\n%s", err, bad.Bytes())
		}
	})
	addrs = map[string][]string{}
	for _, word := range strings.Fields(<-serving) {
		kind, addr, _ := strings.Cut(word, "=")
		addrs[kind] = append(addrs[kind], addr)
	}
	if len(addrs) == 0 {
		ts.Fatalf("the box does not serve")
	}
	return addrs
}

// scriptListen serves connections until the script ends, and sets the variable to the
// port.
func scriptListen(ts *testscript.TestScript, variable string, serve func(c net.Conn)) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	ts.Setenv(variable, port)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	ts.Defer(func() {
		l.Close()
		running.Wait()
	})
}

func scriptImpostor(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: impostor FILE")
	}
	lines := slices.Collect(strings.Lines(ts.ReadFile(args[0])))
	scriptListen(ts, "IMPOSTOR", func(c net.Conn) {
		in := bufio.NewReader(c)
		for _, line := range lines {
			io.WriteString(c, strings.TrimSuffix(line, "\n")+"\r\n")
			if _, err := in.ReadString('\n'); err != nil {
				return
			}
		}
	})
}

func scriptGarble(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || len(args[0]) != len(args[1]) || neg {
		ts.Fatalf("usage: garble OLD NEW, of the same length")
	}
	scriptWay(ts, "GARBLED", func(to, from net.Conn) {
		b := make([]byte, 256<<10) // more than a small file and all that is said of it
		for {
			n, err := from.Read(b)
			if _, werr := to.Write(bytes.ReplaceAll(b[:n], []byte(args[0]), []byte(args[1]))); err != nil || werr != nil {
				return
			}
		}
	})
}

func scriptCut(ts *testscript.TestScript, neg bool, args []string) {
	var size byteSize
	if len(args) != 1 || neg || size.UnmarshalText([]byte(args[0])) != nil {
		ts.Fatalf("usage: cut SIZE")
	}
	scriptWay(ts, "CUT", func(to, from net.Conn) { io.CopyN(to, from, int64(size)) })
}

// scriptWay listens for clients and has carry bring to the box what they send, and
// back. When either returns, both ways are closed.
func scriptWay(ts *testscript.TestScript, variable string, carry func(to, from net.Conn)) {
	port := ts.Getenv("PORT")
	scriptListen(ts, variable, func(c net.Conn) {
		box, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return
		}
		var ways sync.WaitGroup
		for _, way := range [][2]net.Conn{{c, box}, {box, c}} {
			ways.Go(func() {
				carry(way[0], way[1])
				c.Close()
				box.Close()
			})
		}
		ways.Wait()
	})
}
