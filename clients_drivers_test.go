// How each real client is called: command lines, scripts, quoting, what it cannot do,
// and the cases that only it has. The matrix, the server under test and the comparisons are in
// clients_test.go; nothing here decides whether a file is right except through them.

package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// clientDrivers is every client and the ways it connects.
func clientDrivers() []clientDriver {
	passiveActive := []string{"passive", "active"}
	bsdExtra := map[string]func(*testing.T, *clientSeat){"wildcards": clientBSDWildcards}
	interactive := map[string]func(*testing.T, *clientSeat){
		"wildcards": clientBSDWildcards,
		"abort-get": clientBSDAbortGet,
		"abort-put": clientBSDAbortPut,
		"reget":     clientBSDReget,
	}
	return []clientDriver{
		{
			name: "curl", needs: []string{"curl"}, security: clientAllSecurity, families: clientBoth,
			modes: []string{"passive", "active", "passive-pasv", "active-port"},
			put:   clientCurlPut, get: clientCurlGet, list: clientCurlList, lists: []string{"NLST", "LIST", "MLSD"},
			extra: map[string]func(*testing.T, *clientSeat){
				"continue": clientCurlContinue, "killed-overwrite": clientCurlKilled, "verify": clientCurlVerify,
				"sessions": clientManySessions,
			},
			cannot: map[string]string{"tab\tx": "curl refuses control characters in a path"},
			broken: clientCurlActiveTLS,
		},
		{
			name: "lftp", needs: []string{"lftp"}, security: clientAllSecurity, families: clientBoth, modes: passiveActive,
			put: clientLftpPut, get: clientLftpGet, list: clientLftpList, lists: []string{"NLST", "LIST", "MLSD"},
			extra: map[string]func(*testing.T, *clientSeat){
				"continue": clientLftpContinue, "mirror": clientLftpMirror, "verify": clientLftpVerify,
				"abort-get": clientLftpAbortGet, "abort-put": clientLftpAbortPut, "sessions": clientManySessions,
			},
		},
		{
			name: "wget", needs: []string{"wget"}, security: clientAllSecurity, families: clientBoth, modes: passiveActive,
			get: clientWgetGet, list: clientWgetList, lists: []string{"LIST"},
			extra: map[string]func(*testing.T, *clientSeat){"continue": clientWgetContinue},
		},
		{
			// ncftp 3.2 knows neither TLS nor IPv6.
			name: "ncftp", needs: []string{"ncftpget", "ncftpput", "ncftpls"},
			security: []string{"plain"}, families: []string{"ipv4"}, modes: passiveActive,
			put: clientNcftpPut, get: clientNcftpGet, list: clientNcftpList, lists: []string{"NLST", "LIST", "MLSD"},
			extra: map[string]func(*testing.T, *clientSeat){"continue": clientNcftpContinue},
		},
		{
			name: "tnftp", needs: []string{"tnftp"}, security: []string{"plain"}, families: clientBoth, modes: passiveActive,
			put: clientBSDPut, get: clientBSDGet, list: clientBSDList, lists: []string{"NLST", "LIST", "MLSD"},
			extra: interactive,
		},
		{
			name: "inetutils-ftp", needs: []string{"inetutils-ftp"}, security: []string{"plain"}, families: clientBoth, modes: passiveActive,
			put: clientBSDPut, get: clientBSDGet, list: clientBSDList, lists: []string{"NLST", "LIST"},
			extra: interactive,
		},
		{
			name: "ftp-ssl", needs: []string{"ftp-ssl"}, security: []string{"plain", "tls"}, families: clientBoth, modes: passiveActive,
			put: clientBSDPut, get: clientBSDGet, list: clientBSDList, lists: []string{"NLST", "LIST"},
			extra: bsdExtra,
		},
		{
			// busybox has no TLS and no active mode.
			name: "busybox", needs: []string{"busybox"}, security: []string{"plain"}, families: clientBoth, modes: []string{"passive"},
			put: clientBusyboxPut, get: clientBusyboxGet,
		},
		{
			name: "ftplib", needs: []string{"python3"}, security: clientAllSecurity, families: clientBoth, modes: passiveActive,
			put: clientFtplibPut, get: clientFtplibGet, list: clientFtplibList, lists: []string{"NLST", "LIST", "MLSD"},
			extra: map[string]func(*testing.T, *clientSeat){
				"continue": clientFtplibContinue, "write-only": clientFtplibWriteOnly, "sessions": clientFtplibSessions,
			},
		},
		{
			// rclone 1.60 is passive only.
			name: "rclone", needs: []string{"rclone"}, security: clientAllSecurity, families: clientBoth, modes: []string{"passive"},
			put: clientRclonePut, get: clientRcloneGet, list: clientRcloneList, lists: []string{"LIST", "MLSD"},
			cannot: map[string]string{"latin-\xfc\xe9.txt": "rclone replaces bytes that are not UTF-8"},
			extra:  map[string]func(*testing.T, *clientSeat){"sync": clientRcloneSync},
		},
		{
			name: "netcat", needs: []string{"nc"}, security: []string{"plain"}, families: clientBoth, modes: passiveActive,
			put: clientHandPut, get: clientHandGet, list: clientHandList, lists: []string{"NLST", "LIST", "MLSD"},
			extra: map[string]func(*testing.T, *clientSeat){"typed": clientHandTyped},
		},
		{
			// In active mode the server connects and the client must be the TLS client on
			// an accepted socket, which s_client and gnutls-cli cannot be.
			name: "openssl", needs: []string{"openssl"}, security: []string{"tls", "implicit"}, families: clientBoth, modes: []string{"passive"},
			put: clientHandPut, get: clientHandGet, list: clientHandList, lists: []string{"NLST", "LIST", "MLSD"},
			extra: map[string]func(*testing.T, *clientSeat){"typed": clientHandTyped},
		},
		{
			name: "gnutls-cli", needs: []string{"gnutls-cli"}, security: []string{"tls", "implicit"}, families: clientBoth, modes: []string{"passive"},
			put: clientHandPut, get: clientHandGet, list: clientHandList, lists: []string{"NLST", "LIST", "MLSD"},
			extra: map[string]func(*testing.T, *clientSeat){"typed": clientHandTyped},
		},
	}
}

// --- curl ---

func (s *clientSeat) curlArgs() []string {
	args := []string{"-q", "-sS", "-g", "--show-error", "--fail", "--max-time", "30", "-u", s.user + ":" + clientPassword}
	if s.security != "plain" {
		args = append(args, "--cacert", s.rig.ca)
	}
	if s.security == "tls" {
		args = append(args, "--ssl-reqd")
	}
	switch s.mode {
	case "passive-pasv":
		args = append(args, "--disable-epsv")
	case "active":
		args = append(args, "-P", "-")
	case "active-port":
		args = append(args, "-P", "-", "--disable-eprt")
	}
	return args
}

// url is the address of a file for curl and wget; every byte that could mean something is percent-encoded.
func (s *clientSeat) url(scheme, dir, name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s://%s/", scheme, s.addr())
	for _, c := range []byte(dir + "/" + name) {
		if c == '/' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func (s *clientSeat) curlScheme() string {
	if s.security == "implicit" {
		return "ftps"
	}
	return "ftp"
}

func clientCurlPut(s *clientSeat, dir string, files []clientFile) error {
	return s.curlEach(files, func(f clientFile) string {
		return fmt.Sprintf("upload-file = %q\nurl = %q\n", f.local, s.url(s.curlScheme(), dir, f.name))
	})
}

func clientCurlGet(s *clientSeat, dir string, files []clientFile) error {
	return s.curlEach(files, func(f clientFile) string {
		return fmt.Sprintf("output = %q\nurl = %q\n", f.local, s.url(s.curlScheme(), dir, f.name))
	})
}

// curlEach gives a few files to one curl, so that they share a connection, and many to one curl each: curl 7.88 often waits
// a second before it connects for the second and later transfers of a process, with every server.
func (s *clientSeat) curlEach(files []clientFile, config func(f clientFile) string) error {
	const shared = 6
	var errs []error
	for batch := range slices.Chunk(files, max(1, shared/len(files)*shared)) {
		var text strings.Builder
		for _, f := range batch {
			text.WriteString(config(f))
		}
		_, err := s.run(text.String(), "curl", append(s.curlArgs(), "-K", "-")...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func clientCurlList(s *clientSeat, kind, dir string) (string, error) {
	args := s.curlArgs()
	switch kind {
	case "NLST":
		args = append(args, "-l")
	case "MLSD":
		args = append(args, "-X", "MLSD")
	}
	return s.run("", "curl", append(args, s.url(s.curlScheme(), dir, ""))...)
}

func clientCurlContinue(t *testing.T, s *clientSeat) {
	content := clientBytes(3, 300_001)
	s.remote(t, "up.bin", content[:100_000])
	s.remote(t, "down.bin", content)
	local, got := s.local("up.bin", content), s.local("got.bin", content[:100_000])
	if _, err := s.run("", "curl", append(s.curlArgs(), "-C", "-", "-T", local, s.url(s.curlScheme(), s.subdir, "up.bin"))...); err != nil {
		t.Errorf("upload with -C -: %v", err)
	}
	clientCompare(t, "continued upload", s.home("up.bin"), local)
	if _, err := s.run("", "curl", append(s.curlArgs(), "-C", "-", "-o", got, s.url(s.curlScheme(), s.subdir, "down.bin"))...); err != nil {
		t.Errorf("download with -C -: %v", err)
	}
	clientCompare(t, "continued download", got, local)
}

// clientCurlKilled kills curl in the middle of an upload over an existing file: the old content stays.
func clientCurlKilled(t *testing.T, s *clientSeat) {
	s.skipUnlessFirst(t)
	s.user = clientSlowUser
	old := clientBytes(4, 5000)
	s.remote(t, "kept.bin", old)
	local := s.local("new.bin", clientBytes(5, clientSlowPut))
	cmd, out, done := s.start(nil, "curl", append(s.curlArgs(), "-T", local, s.url(s.curlScheme(), s.subdir, "kept.bin"))...)
	s.awaitUpload(t, "kept.bin", int64(len(old)))
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if err := <-done; err == nil {
		t.Fatalf("curl finished before it was killed: %s", out)
	}
	s.awaitSettled(t)
	clientCompareBytes(t, "the file under an upload that was killed", s.home("kept.bin"), old)
}

// clientCurlActiveTLS: curl 7.87 and 7.88 (Debian 12) forget TLS on data connections that they accept, and send in clear after
// PROT P (github.com/curl/curl/issues/10666). What can be seen with them is that the server takes nothing of it.
func clientCurlActiveTLS(t *testing.T, s *clientSeat) bool {
	if s.security == "plain" || !strings.HasPrefix(s.mode, "active") {
		return false
	}
	seat := s.fork(t)
	if out, err := seat.run("", "curl", "-q", "--version"); err != nil || !clientCurlForgetsTLS.MatchString(out) {
		return false
	}
	t.Run("clear-data-refused", func(t *testing.T) {
		local := seat.local("clear.bin", []byte("sent in clear after PROT P"))
		if err := clientCurlPut(seat, seat.subdir, []clientFile{{"clear.bin", local}}); err == nil {
			t.Error("an upload in clear after PROT P was answered as if it had worked")
		}
		if b, err := os.ReadFile(seat.home("clear.bin")); err == nil && len(b) > 0 {
			t.Errorf("%d bytes that came in clear after PROT P were stored", len(b))
		}
	})
	return true
}

var clientCurlForgetsTLS = regexp.MustCompile(`^curl 7\.8[78]\.`)

func clientCurlVerify(t *testing.T, s *clientSeat) {
	if s.security == "plain" {
		t.Skip("nothing to verify without TLS")
	}
	args := slices.DeleteFunc(s.curlArgs(), func(a string) bool { return a == "--cacert" || a == s.rig.ca })
	_, err := s.run("", "curl", append(args, s.url(s.curlScheme(), "many", ""))...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 60 {
		t.Errorf("curl without the CA file: %v; want exit status 60, or the other cases prove nothing about the certificate", err)
	}
}

// --- lftp ---

func clientLftpQuote(name string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`
}

func (s *clientSeat) lftpHead() string {
	host, port, _ := net.SplitHostPort(s.addr())
	var b strings.Builder
	b.WriteString("set cmd:fail-exit yes\nset net:max-retries 2\nset net:timeout 20\nset cmd:interactive no\n")
	// Active over IPv6, lftp 4.9 sends the address of an unbound socket, EPRT |2|::|port|; where that is refused it reconnects
	// in passive mode before each transfer, by default after many seconds.
	b.WriteString("set net:reconnect-interval-base 0\nset net:reconnect-interval-max 1\n")
	scheme := "ftp"
	switch s.security {
	case "plain":
		b.WriteString("set ftp:ssl-allow no\n")
	case "tls":
		b.WriteString("set ftp:ssl-force yes\nset ftp:ssl-protect-data yes\n")
	case "implicit":
		b.WriteString("set ftp:ssl-protect-data yes\n")
		scheme = "ftps"
	}
	fmt.Fprintf(&b, "set ssl:verify-certificate yes\nset ssl:ca-file %s\n", clientLftpQuote(s.rig.ca))
	fmt.Fprintf(&b, "set ftp:passive-mode %v\n", s.mode == "passive")
	if s.family == "ipv6" {
		host = "[" + host + "]"
	}
	fmt.Fprintf(&b, "open -u %s,%s %s://%s:%s\n", s.user, clientPassword, scheme, host, port)
	return b.String()
}

func (s *clientSeat) lftp(script string) (string, error) {
	return s.run(s.lftpHead()+script, "lftp", "--norc")
}

func clientLftpPut(s *clientSeat, dir string, files []clientFile) error {
	var b strings.Builder
	fmt.Fprintf(&b, "cd %s\n", dir)
	for _, f := range files {
		fmt.Fprintf(&b, "put %s -o %s\n", clientLftpQuote(f.local), clientLftpQuote("./"+f.name))
	}
	_, err := s.lftp(b.String())
	return err
}

func clientLftpGet(s *clientSeat, dir string, files []clientFile) error {
	var b strings.Builder
	fmt.Fprintf(&b, "cd %s\n", dir)
	for _, f := range files {
		fmt.Fprintf(&b, "get %s -o %s\n", clientLftpQuote("./"+f.name), clientLftpQuote(f.local))
	}
	_, err := s.lftp(b.String())
	return err
}

func clientLftpList(s *clientSeat, kind, dir string) (string, error) {
	switch kind {
	case "NLST":
		return s.lftp("nlist " + dir + "\n")
	case "LIST":
		return s.lftp("set ftp:use-mlsd no\nls " + dir + "\n")
	}
	return s.lftp("set ftp:use-mlsd yes\ncls -1 " + dir + "/\n")
}

func clientLftpContinue(t *testing.T, s *clientSeat) {
	content := clientBytes(3, 300_001)
	s.remote(t, "up.bin", content[:100_000])
	s.remote(t, "down.bin", content)
	local, got := s.local("up.bin", content), s.local("got.bin", content[:100_000])
	if _, err := s.lftp(fmt.Sprintf("cd %s\nput -c %s -o up.bin\nget -c down.bin -o %s\n", s.subdir, local, got)); err != nil {
		t.Errorf("put -c and get -c: %v", err)
	}
	clientCompare(t, "put -c", s.home("up.bin"), local)
	clientCompare(t, "get -c", got, local)
}

func clientLftpMirror(t *testing.T, s *clientSeat) {
	tree := filepath.Join(s.dir, "tree")
	clientTree(t, tree)
	if _, err := s.lftp(fmt.Sprintf("mirror -R %s %s/tree\n", tree, s.subdir)); err != nil {
		t.Errorf("mirror -R: %v", err)
	}
	clientCompareTrees(t, "mirror -R", s.home("tree"), tree)
	back := filepath.Join(s.dir, "back")
	if _, err := s.lftp(fmt.Sprintf("mirror %s/tree %s\n", s.subdir, back)); err != nil {
		t.Errorf("mirror: %v", err)
	}
	clientCompareTrees(t, "mirror", back, tree)
	out, err := s.lftp(fmt.Sprintf("mirror -R -v --dry-run %s %s/tree\n", tree, s.subdir))
	if err != nil || strings.Contains(out, "put ") || strings.Contains(out, "get ") {
		t.Errorf("a second mirror -R would transfer again (sizes or times not kept): %v %s", err, out)
	}
}

func clientLftpVerify(t *testing.T, s *clientSeat) {
	if s.security == "plain" {
		t.Skip("nothing to verify without TLS")
	}
	script := strings.Replace(s.lftpHead(), clientLftpQuote(s.rig.ca), `""`, 1) + "nlist\n"
	if out, err := s.run(script, "lftp", "--norc"); err == nil {
		t.Errorf("lftp without the CA file listed the home, so the other cases prove nothing about the certificate: %.200s", out)
	}
}

func clientLftpAbortGet(t *testing.T, s *clientSeat) {
	s.skipUnlessFirst(t)
	s.abortGet(t, "lftp", []string{"--norc"}, s.lftpTerminal(), "get -O %[1]s %[2]s/big.bin\n", "get -O %[1]s %[2]s/small.bin\nput -O %[2]s %[3]s\n")
}

func clientLftpAbortPut(t *testing.T, s *clientSeat) {
	s.skipUnlessFirst(t)
	s.abortPut(t, "lftp", []string{"--norc"}, s.lftpTerminal(), "put -O %[2]s %[1]s\n", "get -O %[3]s %[2]s/small.bin\n", true)
}

// lftpTerminal is the head for a session on a terminal, which must go on after an error.
func (s *clientSeat) lftpTerminal() string {
	s.user = clientSlowUser
	head := strings.Replace(s.lftpHead(), "set cmd:fail-exit yes\n", "", 1)
	return strings.Replace(head, "set cmd:interactive no\n", "", 1)
}

// --- wget ---

func (s *clientSeat) wgetArgs() []string {
	args := []string{"--no-config", "-nv", "--no-glob", "-t", "1", "-T", "20", "--user", s.user, "--password", clientPassword}
	if s.security != "plain" {
		args = append(args, "--ca-certificate", s.rig.ca)
	}
	if s.security == "implicit" {
		args = append(args, "--ftps-implicit")
	}
	if s.mode == "active" {
		args = append(args, "--no-passive-ftp")
	}
	return args
}

func (s *clientSeat) wgetScheme() string {
	if s.security == "plain" {
		return "ftp"
	}
	return "ftps"
}

func clientWgetGet(s *clientSeat, dir string, files []clientFile) error {
	var errs []error
	for _, f := range files {
		_, err := s.run("", "wget", append(s.wgetArgs(), "-O", f.local, s.url(s.wgetScheme(), dir, f.name))...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func clientWgetList(s *clientSeat, _, dir string) (string, error) {
	return s.run("", "wget", append(s.wgetArgs(), "-O", "-", s.url(s.wgetScheme(), dir, ""))...)
}

func clientWgetContinue(t *testing.T, s *clientSeat) {
	content := clientBytes(3, 300_001)
	s.remote(t, "down.bin", content)
	got := s.local("down.bin", content[:100_000])
	if _, err := s.run("", "wget", append(s.wgetArgs(), "-c", "-P", s.dir, s.url(s.wgetScheme(), s.subdir, "down.bin"))...); err != nil {
		t.Errorf("wget -c: %v", err)
	}
	clientCompare(t, "wget -c", got, s.home("down.bin"))
}

// --- ncftp ---

func (s *clientSeat) ncftpArgs(extra ...string) []string {
	host, port, _ := net.SplitHostPort(s.addr())
	args := []string{"-V", "-t", "20", "-r", "1", "-u", s.user, "-p", clientPassword, "-P", port, "-F"}
	if s.mode == "active" {
		args[len(args)-1] = "-E"
	}
	return append(append(args, extra...), host)
}

func clientNcftpPut(s *clientSeat, dir string, files []clientFile) error {
	var errs []error
	for _, f := range files {
		_, err := s.run("", "ncftpput", append(s.ncftpArgs("-C"), f.local, dir+"/"+f.name)...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func clientNcftpGet(s *clientSeat, dir string, files []clientFile) error {
	var errs []error
	for _, f := range files {
		_, err := s.run("", "ncftpget", append(s.ncftpArgs("-C"), dir+"/"+f.name, f.local)...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func clientNcftpList(s *clientSeat, kind, dir string) (string, error) {
	mode := "-F"
	if s.mode == "active" {
		mode = "-E"
	}
	flag := map[string]string{"NLST": "-1", "LIST": "-l", "MLSD": "-m"}[kind]
	return s.run("", "ncftpls", flag, mode, "-t", "20", "-u", s.user, "-p", clientPassword, s.url("ftp", dir, ""))
}

func clientNcftpContinue(t *testing.T, s *clientSeat) {
	content := clientBytes(3, 300_001)
	s.remote(t, "up.bin", content[:100_000])
	s.remote(t, "down.bin", content)
	local, got := s.local("up.bin", content), s.local("down.bin", content[:100_000])
	// ncftp resumes only towards the newer file.
	past := time.Now().Add(-time.Hour)
	if err := errors.Join(os.Chtimes(s.home("up.bin"), past, past), os.Chtimes(got, past, past)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.run("", "ncftpput", append(s.ncftpArgs("-z"), s.subdir, local)...); err != nil {
		t.Errorf("ncftpput -z: %v", err)
	}
	clientCompare(t, "ncftpput -z", s.home("up.bin"), local)
	if _, err := s.run("", "ncftpget", append(s.ncftpArgs("-z"), s.dir, s.subdir+"/down.bin")...); err != nil {
		t.Errorf("ncftpget -z: %v", err)
	}
	clientCompare(t, "ncftpget -z", got, s.home("down.bin"))
}

// --- tnftp, inetutils ftp, ftp-ssl: the BSD family ---

// bsd gives the command and arguments that connect, with commands read from standard input.
func (s *clientSeat) bsd() (string, []string) {
	host, port, _ := net.SplitHostPort(s.addr())
	var args []string
	switch s.driver.name {
	case "tnftp":
		args = []string{"-n", "-i", "-p"}
		if s.mode == "active" {
			args[2] = "-A"
		}
	case "inetutils-ftp":
		args = []string{"-n", "-i", "-v", "-p"}
		if s.mode == "active" {
			args[3] = "-A"
		}
	case "ftp-ssl":
		args = []string{"-n", "-i", "-v"}
		if s.mode == "passive" {
			args = append(args, "-p")
		}
		if s.security == "plain" {
			args = append(args, "-z", "nossl")
		} else {
			args = append(args, "-z", "secure", "-z", "verify=1", "-z", "cacert="+s.rig.ca)
		}
	}
	return s.driver.name, append(args, host, port)
}

func (s *clientSeat) bsdScript(script string) (string, error) {
	name, args := s.bsd()
	return s.run(fmt.Sprintf("user %s %s\nbinary\n%squit\n", s.user, clientPassword, script), name, args...)
}

// clientBSDQuote escapes by backslash, the one way that all three read alike outside and inside of words.
func clientBSDQuote(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		if strings.IndexByte("\"'\\ \t$!|<>*?[]{}~;&#", c) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}

func clientBSDPut(s *clientSeat, dir string, files []clientFile) error {
	var b strings.Builder
	for _, f := range files {
		fmt.Fprintf(&b, "put %s %s\n", f.local, clientBSDQuote(dir+"/"+f.name))
	}
	out, err := s.bsdScript(b.String())
	return clientBSDError(out, err)
}

func clientBSDGet(s *clientSeat, dir string, files []clientFile) error {
	var b strings.Builder
	for _, f := range files {
		fmt.Fprintf(&b, "get %s %s\n", clientBSDQuote(dir+"/"+f.name), f.local)
	}
	out, err := s.bsdScript(b.String())
	return clientBSDError(out, err)
}

// clientBSDError finds the replies that say no, because the exit status of this family tells nothing.
func clientBSDError(out string, err error) error {
	if bad := clientBadReply.FindAllString(out, 3); err == nil && bad != nil {
		return fmt.Errorf("replies %q", bad)
	}
	return err
}

// clientBadReply leaves out what a BSD client asks for and does without: SIZE, MDTM, FEAT, AUTH.
var clientBadReply = regexp.MustCompile(`(?m)^(?:425|426|451|452|530|550|552|553) .*$`)

func clientBSDList(s *clientSeat, kind, dir string) (string, error) {
	file := filepath.Join(s.dir, "list")
	if kind == "MLSD" {
		return s.bsdScript("mlsd " + dir + "\n") // tnftp alone has it, and prints it
	}
	verb := map[string]string{"NLST": "nlist", "LIST": "dir"}[kind]
	out, err := s.bsdScript(fmt.Sprintf("%s %s %s\n", verb, dir, file))
	if err != nil {
		return out, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return out, fmt.Errorf("%w; the client said %s", err, out)
	}
	return string(b), nil
}

func clientBSDWildcards(t *testing.T, s *clientSeat) {
	up := filepath.Join(s.dir, "wild-up")
	down := filepath.Join(s.dir, "wild-down")
	if err := errors.Join(os.Mkdir(up, 0o755), os.Mkdir(down, 0o755)); err != nil {
		t.Fatal(err)
	}
	var chosen []string
	for i := range 5 {
		name := fmt.Sprintf("a-%d.txt", i)
		chosen = append(chosen, name)
		s.local(filepath.Join("wild-up", name), clientBytes(uint64(i), 2000+i))
	}
	s.local(filepath.Join("wild-up", "b.dat"), []byte("b"))
	s.remote(t, "b.dat", []byte("stays"))
	head := fmt.Sprintf("cd %s\nlcd %s\n", s.subdir, up)
	if out, err := s.bsdScript(head + "mput a-*.txt\n"); err != nil {
		t.Errorf("mput: %v %s", err, out)
	}
	for _, name := range chosen {
		clientCompare(t, "mput "+name, s.home(name), filepath.Join(up, name))
	}
	if out, err := s.bsdScript(fmt.Sprintf("cd %s\nlcd %s\nmget a-*.txt\n", s.subdir, down)); err != nil {
		t.Errorf("mget: %v %s", err, out)
	}
	for _, name := range chosen {
		clientCompare(t, "mget "+name, filepath.Join(down, name), filepath.Join(up, name))
	}
	if _, err := os.Stat(filepath.Join(down, "b.dat")); err == nil {
		t.Error("mget a-*.txt brought b.dat too")
	}
	if out, err := s.bsdScript(fmt.Sprintf("cd %s\nmdelete a-[1-4]*\n", s.subdir)); err != nil {
		t.Errorf("mdelete: %v %s", err, out)
	}
	var left []string
	entries, err := os.ReadDir(s.home(""))
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"a-0.txt", "b.dat"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("after mdelete a-[1-4]* there is %q, %v; want %q", left, err, want)
	}
}

func clientBSDReget(t *testing.T, s *clientSeat) {
	content := clientBytes(3, 300_001)
	s.remote(t, "down.bin", content)
	got := s.local("down.bin", content[:100_000])
	if out, err := s.bsdScript(fmt.Sprintf("reget %s/down.bin %s\n", s.subdir, got)); clientBSDError(out, err) != nil {
		t.Errorf("reget: %v", clientBSDError(out, err))
	}
	clientCompare(t, "reget", got, s.home("down.bin"))
}

func (s *clientSeat) bsdTerminal() (string, []string, string) {
	s.user = clientSlowUser
	name, args := s.bsd()
	return name, args, fmt.Sprintf("user %s %s\nbinary\n", s.user, clientPassword)
}

func clientBSDAbortGet(t *testing.T, s *clientSeat) {
	s.skipUnlessPassive(t)
	name, args, head := s.bsdTerminal()
	s.abortGet(t, name, args, head, "get %[2]s/big.bin %[1]s/big.bin\n", "get %[2]s/small.bin %[1]s/small.bin\nput %[3]s %[2]s/after.bin\n")
}

// clientBSDAbortPut: this family ends an interrupted upload by closing the data connection as a
// complete upload does, and says nothing on the control connection. No server can tell, so
// only the session is judged, and that the file is the old one or a beginning of the new.
func clientBSDAbortPut(t *testing.T, s *clientSeat) {
	s.skipUnlessPassive(t)
	name, args, head := s.bsdTerminal()
	s.abortPut(t, name, args, head, "put %[1]s %[2]s/big.bin\n", "get %[2]s/small.bin %[3]s/small.bin\n", false)
}

// --- busybox ---

func (s *clientSeat) busyboxArgs(applet string) []string {
	host, port, _ := net.SplitHostPort(s.addr())
	return []string{applet, "-u", s.user, "-p", clientPassword, "-P", port, host}
}

func clientBusyboxPut(s *clientSeat, dir string, files []clientFile) error {
	var errs []error
	for _, f := range files {
		_, err := s.run("", "busybox", append(s.busyboxArgs("ftpput"), dir+"/"+f.name, f.local)...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func clientBusyboxGet(s *clientSeat, dir string, files []clientFile) error {
	var errs []error
	for _, f := range files {
		_, err := s.run("", "busybox", append(s.busyboxArgs("ftpget"), f.local, dir+"/"+f.name)...)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// --- Python's ftplib ---

// clientFtplibProgram reads a job in JSON. Names travel as Latin-1 text, which stands for the same
// bytes on the wire because the connection's encoding is set to it.
const clientFtplibProgram = `
import ftplib, json, ssl, sys, threading

class Implicit(ftplib.FTP_TLS):
    _sock = None
    @property
    def sock(self):
        return self._sock
    @sock.setter
    def sock(self, value):
        if value is not None and not isinstance(value, ssl.SSLSocket):
            value = self.context.wrap_socket(value, server_hostname=self.host)
        self._sock = value

job = json.load(sys.stdin)

def connect():
    if job["security"] == "plain":
        ftp = ftplib.FTP()
    else:
        context = ssl.create_default_context(cafile=job["ca"])
        ftp = (Implicit if job["security"] == "implicit" else ftplib.FTP_TLS)(context=context)
    ftp.encoding = "latin-1"
    ftp.connect(job["host"], job["port"], timeout=20)
    if job["security"] == "tls":
        ftp.auth()
    if job["security"] == "implicit":
        ftplib.FTP.login(ftp, job["user"], job["password"])
    else:
        ftp.login(job["user"], job["password"])
    if job["security"] != "plain":
        ftp.prot_p()
    ftp.set_pasv(job["passive"])
    return ftp

def put(ftp, name, local, rest=None):
    with open(local, "rb") as f:
        if rest:
            f.seek(rest)
        ftp.storbinary("STOR " + name, f, rest=rest)

def get(ftp, name, local, rest=None):
    with open(local, "r+b" if rest else "wb") as f:
        if rest:
            f.seek(rest)
        ftp.retrbinary("RETR " + name, f.write, rest=rest)

do = job["do"]
if do == "sessions":
    barrier = threading.Barrier(len(job["files"]), timeout=30)
    failed = []
    def one(f):
        try:
            ftp = connect()
            barrier.wait()
            put(ftp, f["name"], f["local"])
            get(ftp, f["name"], f["local"] + ".back")
            barrier.wait()
            ftp.quit()
        except Exception as e:
            failed.append("%s: %r" % (f["name"], e))
            barrier.abort()
    threads = [threading.Thread(target=one, args=(f,)) for f in job["files"]]
    for t in threads: t.start()
    for t in threads: t.join()
    sys.exit("; ".join(failed) if failed else 0)

ftp = connect()
failed = []
for f in job["files"] or []:
    try:
        if do == "put":
            put(ftp, f["name"], f["local"], job.get("rest"))
        elif do == "get":
            get(ftp, f["name"], f["local"], job.get("rest"))
        elif do == "write-only":
            data = open(f["local"], "rb").read()
            ftp.voidcmd("TYPE I")
            conn = ftp.transfercmd("STOR " + f["name"])
            conn.sendall(data)
            conn.close()
            ftp.voidresp()
    except ftplib.Error as e:
        failed.append("%r: %r" % (f["name"], e))
if do == "list":
    sys.stdout.reconfigure(encoding="latin-1")
    if job["kind"] == "NLST":
        print("\n".join(ftp.nlst(job["dir"])))
    elif job["kind"] == "LIST":
        ftp.dir(job["dir"])
    else:
        print("\n".join(name for name, facts in ftp.mlsd(job["dir"]) if facts["type"] not in ("cdir", "pdir")))
ftp.quit()
sys.exit("; ".join(failed) if failed else 0)
`

func (s *clientSeat) ftplib(do, dir string, files []clientFile, more map[string]any) (string, error) {
	host, port, _ := net.SplitHostPort(s.addr())
	number, _ := strconv.Atoi(port)
	moves := make([]map[string]string, len(files))
	for i, f := range files {
		moves[i] = map[string]string{"name": clientLatin1(dir + "/" + f.name), "local": f.local}
	}
	job := map[string]any{
		"do": do, "security": s.security, "ca": s.rig.ca, "host": host, "port": number, "user": s.user,
		"password": clientPassword, "passive": s.mode == "passive", "files": moves, "dir": dir,
	}
	for k, v := range more {
		job[k] = v
	}
	in, err := json.Marshal(job)
	if err != nil {
		return "", err
	}
	return s.run(string(in), "python3", "-c", clientFtplibProgram)
}

// clientLatin1 makes each byte the character of the same number.
func clientLatin1(name string) string {
	runes := make([]rune, len(name))
	for i, c := range []byte(name) {
		runes[i] = rune(c)
	}
	return string(runes)
}

func clientFtplibPut(s *clientSeat, dir string, files []clientFile) error {
	_, err := s.ftplib("put", dir, files, nil)
	return err
}

func clientFtplibGet(s *clientSeat, dir string, files []clientFile) error {
	_, err := s.ftplib("get", dir, files, nil)
	return err
}

func clientFtplibList(s *clientSeat, kind, dir string) (string, error) {
	return s.ftplib("list", dir, nil, map[string]any{"kind": kind})
}

func clientFtplibContinue(t *testing.T, s *clientSeat) {
	content := clientBytes(3, 300_001)
	s.remote(t, "up.bin", content[:100_000])
	s.remote(t, "down.bin", content)
	local, got := s.local("up.bin", content), s.local("got.bin", content[:100_000])
	rest := map[string]any{"rest": 100_000}
	if _, err := s.ftplib("put", s.subdir, []clientFile{{"up.bin", local}}, rest); err != nil {
		t.Errorf("REST and STOR: %v", err)
	}
	clientCompare(t, "REST and STOR", s.home("up.bin"), local)
	if _, err := s.ftplib("get", s.subdir, []clientFile{{"down.bin", got}}, rest); err != nil {
		t.Errorf("REST and RETR: %v", err)
	}
	clientCompare(t, "REST and RETR", got, local)
}

// clientFtplibWriteOnly sends and closes at once, without close_notify and without ever reading from the data connection:
// this is what loses the end of files on servers that send TLS 1.3 tickets there (field.md section 9, item 1).
func clientFtplibWriteOnly(t *testing.T, s *clientSeat) {
	var files []clientFile
	for i := range 20 {
		size := []int{0, 1, 65536, 1 << 20}[i%4]
		name := fmt.Sprintf("w-%d-%d.bin", i, size)
		files = append(files, clientFile{name, s.local(name, clientBytes(uint64(i), size))})
	}
	if _, err := s.ftplib("write-only", s.subdir, files, nil); err != nil {
		t.Errorf("write and close: %v", err)
	}
	for _, f := range files {
		clientCompare(t, "uploaded "+f.name, s.home(f.name), f.local)
	}
}

// clientFtplibSessions has twenty sessions logged in at the same moment: a barrier lets none transfer before all are in.
func clientFtplibSessions(t *testing.T, s *clientSeat) {
	var files []clientFile
	for i := range clientSessions {
		name := fmt.Sprintf("s-%d.bin", i)
		files = append(files, clientFile{name, s.local(name, clientBytes(uint64(50+i), 200_000+i))})
	}
	if _, err := s.ftplib("sessions", s.subdir, files, nil); err != nil {
		t.Errorf("%d sessions: %v", clientSessions, err)
	}
	for _, f := range files {
		clientCompare(t, "uploaded "+f.name, s.home(f.name), f.local)
		clientCompare(t, "downloaded "+f.name, f.local+".back", f.local)
	}
}

// --- rclone ---

func (s *clientSeat) rclone(args ...string) (string, error) {
	return s.run("", "rclone", append([]string{
		"--config", os.DevNull, "--retries", "1", "--low-level-retries", "2", "--contimeout", "20s", "--timeout", "20s",
		"--cache-dir", s.dir,
	}, args...)...)
}

// rcloneRemote is a connection string; encoding is limited to what FTP cannot say, or rclone would
// replace leading and trailing spaces and dots.
func (s *clientSeat) rcloneRemote(dir, more string) (string, error) {
	password, err := s.run("", "rclone", "obscure", clientPassword)
	if err != nil {
		return "", err
	}
	host, port, _ := net.SplitHostPort(s.addr())
	if s.family == "ipv6" {
		host = "[" + host + "]" // rclone joins host and port with a bare colon
	}
	tls := map[string]string{"plain": "", "tls": ",explicit_tls=true", "implicit": ",tls=true"}[s.security]
	return fmt.Sprintf(":ftp,host='%s',port=%s,user=%s,pass=%s%s,encoding='Slash'%s:%s",
		host, port, s.user, strings.TrimSpace(password), tls, more, dir), nil
}

func clientRclonePut(s *clientSeat, dir string, files []clientFile) error {
	from := filepath.Join(s.dir, "rclone-put-"+clientToken())
	if err := os.Mkdir(from, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		if err := os.Link(f.local, filepath.Join(from, f.name)); err != nil {
			return err
		}
	}
	remote, err := s.rcloneRemote(dir, "")
	if err != nil {
		return err
	}
	_, err = s.rclone("copy", "--local-encoding", "Slash", from, remote)
	return err
}

func clientRcloneGet(s *clientSeat, dir string, files []clientFile) error {
	to := filepath.Join(s.dir, "rclone-get-"+clientToken())
	remote, err := s.rcloneRemote(dir, "")
	if err != nil {
		return err
	}
	_, err = s.rclone("copy", "--local-encoding", "Slash", remote, to)
	for _, f := range files {
		err = errors.Join(err, os.Rename(filepath.Join(to, f.name), f.local))
	}
	return err
}

func clientRcloneList(s *clientSeat, kind, dir string) (string, error) {
	remote, err := s.rcloneRemote(dir, map[string]string{"MLSD": "", "LIST": ",disable_mlsd=true"}[kind])
	if err != nil {
		return "", err
	}
	return s.rclone("lsf", remote)
}

func clientRcloneSync(t *testing.T, s *clientSeat) {
	tree := filepath.Join(s.dir, "tree")
	clientTree(t, tree)
	s.remote(t, "tree/extra.bin", []byte("sync deletes this"))
	remote, err := s.rcloneRemote(s.subdir+"/tree", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.rclone("sync", "--create-empty-src-dirs", "--local-encoding", "Slash", tree, remote); err != nil {
		t.Errorf("sync to the server: %v", err)
	}
	clientCompareTrees(t, "sync to the server", s.home("tree"), tree)
	back := filepath.Join(s.dir, "back")
	if _, err := s.rclone("sync", "--create-empty-src-dirs", "--local-encoding", "Slash", remote, back); err != nil {
		t.Errorf("sync from the server: %v", err)
	}
	clientCompareTrees(t, "sync from the server", back, tree)
	if out, err := s.rclone("check", "--download", "--local-encoding", "Slash", tree, remote); err != nil {
		t.Errorf("check --download: %v %s", err, out)
	}
}

// --- the protocol typed by hand, through nc, openssl s_client or gnutls-cli ---

// handCommand is the program and arguments that connect standard input and output to addr. control
// asks for STARTTLS where the seat does; upload is about what the end of standard input does.
func (s *clientSeat) handCommand(addr string, control, upload bool) (string, []string) {
	host, port, _ := net.SplitHostPort(addr)
	switch s.driver.name {
	case "netcat":
		args := []string{"-w", "20"}
		switch {
		case upload:
			args = append(args, "-N") // end of input: shut down the sending side
		case !control:
			args = append(args, "-d") // the end of input means nothing
		}
		return "nc", append(args, host, port)
	case "openssl":
		args := []string{"s_client", "-quiet", "-CAfile", s.rig.ca, "-verify_return_error", "-verify_ip", host, "-connect", addr}
		if control && s.security == "tls" {
			args = append(args, "-starttls", "ftp")
		}
		if upload {
			args = append(args, "-no_ign_eof", "-nocommands")
		}
		return "openssl", args
	}
	args := []string{"--x509cafile", s.rig.ca, "--logfile", os.DevNull, "-p", port}
	if control && s.security == "tls" {
		args = append(args, "--starttls-proto=ftp")
	}
	return "gnutls-cli", append(args, host)
}

// clientHand is a control connection held by another program.
type clientHand struct {
	s    *clientSeat
	end  string // of a line
	in   io.WriteCloser
	out  *bufio.Reader
	done chan error
	stop func()
}

func (s *clientSeat) hand() (*clientHand, error) {
	name, args := s.handCommand(s.addr(), true, false)
	ctx, cancel := context.WithTimeout(context.Background(), clientTimeout)
	cmd := s.command(ctx, name, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	h := &clientHand{s: s, end: "\r\n", in: in, out: bufio.NewReader(out), done: make(chan error, 1)}
	h.stop = func() { _ = in.Close(); cancel(); _ = cmd.Wait() }
	// With STARTTLS the program has taken the greeting for itself.
	if s.security != "tls" {
		if _, err := h.reply(220); err != nil {
			h.stop()
			return nil, err
		}
	}
	steps := []struct {
		line string
		code int
	}{{"USER " + s.user, 331}, {"PASS " + clientPassword, 230}, {"TYPE I", 200}}
	if s.security != "plain" {
		steps = append(steps, struct {
			line string
			code int
		}{"PBSZ 0", 200}, struct {
			line string
			code int
		}{"PROT P", 200})
	}
	for _, step := range steps {
		if _, err := h.do(step.line, step.code); err != nil {
			h.stop()
			return nil, err
		}
	}
	return h, nil
}

// do sends a line and expects a reply with that code, or one that begins with its digits.
func (h *clientHand) do(line string, code int) (string, error) {
	if _, err := io.WriteString(h.in, line+h.end); err != nil {
		return "", fmt.Errorf("%.200q: %w", line, err)
	}
	text, err := h.reply(code)
	if err != nil {
		return text, fmt.Errorf("%.200q: %w", line, err)
	}
	return text, nil
}

// reply reads one reply, of one line or several (RFC 959 section 4.2).
func (h *clientHand) reply(code int) (string, error) {
	var all strings.Builder
	want := strconv.Itoa(code)
	for first := ""; ; {
		line, err := h.out.ReadString('\n')
		if err != nil {
			return all.String(), fmt.Errorf("no reply: %w", err)
		}
		all.WriteString(line)
		if first == "" && len(line) >= 4 && line[3] == '-' {
			first = line[:3]
			continue
		}
		if first == "" || strings.HasPrefix(line, first+" ") {
			if !strings.HasPrefix(line, want) || len(line) < 4 || line[3] != ' ' {
				return all.String(), fmt.Errorf("reply %q; want %d", line, code)
			}
			return all.String(), nil
		}
	}
}

var clientEPSV = regexp.MustCompile(`\(\|\|\|([0-9]+)\|\)`)

// transfer runs one verb with a data connection made by the same program: in is sent, or the answer is stored in the file out.
func (h *clientHand) transfer(line, in, out string) error {
	s := h.s
	var stdin, stdout *os.File
	var err error
	if in != "" {
		if stdin, err = os.Open(in); err != nil {
			return err
		}
		defer stdin.Close()
	} else {
		if stdout, err = os.Create(out); err != nil {
			return err
		}
		defer stdout.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), clientTimeout)
	defer cancel()
	host, _, _ := net.SplitHostPort(s.addr())
	var cmd *exec.Cmd
	if s.mode == "active" {
		port, err := clientFreePort(host)
		if err != nil {
			return err
		}
		end := "-d"
		if in != "" {
			end = "-N"
		}
		cmd = s.command(ctx, "nc", "-v", end, "-l", host, strconv.Itoa(port))
		stderr, err := cmd.StderrPipe()
		if err != nil {
			return err
		}
		clientWire(cmd, stdin, stdout)
		if err := cmd.Start(); err != nil {
			return err
		}
		defer func() { cancel(); _ = cmd.Wait() }()
		// nc says "Listening on" once it does: before that the server would be refused.
		if _, err := bufio.NewReader(stderr).ReadString('\n'); err != nil {
			return fmt.Errorf("nc -l: %w", err)
		}
		verb := fmt.Sprintf("EPRT |2|%s|%d|", host, port)
		if s.family == "ipv4" {
			verb = fmt.Sprintf("PORT %s,%d,%d", strings.ReplaceAll(host, ".", ","), port>>8, port&255)
		}
		if _, err := h.do(verb, 200); err != nil {
			return err
		}
		if _, err := h.do(line, 150); err != nil {
			return err
		}
	} else {
		text, err := h.do("EPSV", 229)
		if err != nil {
			return err
		}
		m := clientEPSV.FindStringSubmatch(text)
		if m == nil {
			return fmt.Errorf("no port in %q", text)
		}
		name, args := s.handCommand(net.JoinHostPort(host, m[1]), false, in != "")
		cmd = s.command(ctx, name, args...)
		clientWire(cmd, stdin, stdout)
		if in == "" {
			// The end of standard input would end gnutls-cli: hold it open.
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			defer r.Close()
			defer w.Close()
			cmd.Stdin = r
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		defer func() { cancel(); _ = cmd.Wait() }()
		if _, err := h.do(line, 150); err != nil {
			return err
		}
	}
	if _, err := h.reply(226); err != nil {
		return fmt.Errorf("%.200q: %w", line, err)
	}
	if err := cmd.Wait(); err != nil && s.driver.name != "gnutls-cli" {
		return fmt.Errorf("%.200q: data connection by %s: %w", line, s.driver.name, err)
	}
	return nil
}

// clientWire sets what is not nil: a nil *os.File in an interface would not be nil.
func clientWire(cmd *exec.Cmd, stdin, stdout *os.File) {
	if stdin != nil {
		cmd.Stdin = stdin
	}
	if stdout != nil {
		cmd.Stdout = stdout
	}
}

func (s *clientSeat) byHand(work func(h *clientHand) error) error {
	h, err := s.hand()
	if err != nil {
		return err
	}
	defer h.stop()
	if err := work(h); err != nil {
		return err
	}
	_, err = h.do("QUIT", 221)
	return err
}

// clientHandTyped types what needs no data connection as a person does: lower case, ended by a bare LF (design.md section 4).
func clientHandTyped(t *testing.T, s *clientSeat) {
	s.remote(t, "a file.txt", []byte("hello\n"))
	sum := sha256.Sum256([]byte("hello\n"))
	err := s.byHand(func(h *clientHand) error {
		h.end = "\n"
		for _, step := range []struct {
			line string
			code int
			text string
		}{
			{"noop", 200, ""},
			{"help", 214, "STOR"},
			{"feat", 211, "\n MLST "},
			{"pwd", 257, `"/"`},
			{"stat " + s.subdir, 21, "a file.txt"},
			{"mlst " + s.subdir + "/a file.txt", 250, "size=6;"},
			{"size " + s.subdir + "/a file.txt", 213, "6"},
			{"hash " + s.subdir + "/a file.txt", 213, hex.EncodeToString(sum[:])},
			{"cwd " + s.subdir, 250, ""},
			{"retr a file.txt", 425, ""}, // no PASV or PORT before it: at once, not after a wait
			{"mkd new", 257, `/new"`},
			{"rnfr a file.txt", 350, ""},
			{"rnto new/b", 250, ""},
			{"dele new/b", 250, ""},
			{"rmd new", 250, ""},
			{"frobnicate", 500, ""},
		} {
			text, err := h.do(step.line, step.code)
			if text == "" && err != nil {
				return err // no reply at all: there will be none to the next line either
			}
			switch {
			case err != nil:
				t.Error(err)
			case !strings.Contains(strings.ToLower(text), strings.ToLower(step.text)): // RFC 3659 section 7.1: facts in any case
				t.Errorf("%q is answered %q; want %q in it", step.line, text, step.text)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func clientHandPut(s *clientSeat, dir string, files []clientFile) error {
	return s.byHand(func(h *clientHand) error {
		var errs []error
		for _, f := range files {
			errs = append(errs, h.transfer("STOR "+dir+"/"+f.name, f.local, ""))
		}
		return errors.Join(errs...)
	})
}

func clientHandGet(s *clientSeat, dir string, files []clientFile) error {
	return s.byHand(func(h *clientHand) error {
		var errs []error
		for _, f := range files {
			errs = append(errs, h.transfer("RETR "+dir+"/"+f.name, "", f.local))
		}
		return errors.Join(errs...)
	})
}

func clientHandList(s *clientSeat, kind, dir string) (string, error) {
	file := filepath.Join(s.dir, "list")
	err := s.byHand(func(h *clientHand) error { return h.transfer(kind+" "+dir, "", file) })
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(file)
	return string(b), err
}
