<?php
// Insert a job in a transaction, and wait until it has ended.
$url = parse_url(str_replace('sqlite:///', 'sqlite://x/', getenv('WORKERD_STORE__URL')));
$pdo = $url['scheme'] === 'sqlite'
    ? new PDO('sqlite:' . $url['path'])
    : new PDO("mysql:host={$url['host']};dbname=" . ltrim($url['path'], '/'), $url['user'], $url['pass'] ?? '');
$pdo->setAttribute(PDO::ATTR_ERRMODE, PDO::ERRMODE_EXCEPTION);
if ($url['scheme'] === 'sqlite') {
    $pdo->exec('PRAGMA busy_timeout = 5000');
}

$id = random_bytes(16);
$pdo->beginTransaction();
$insert = $pdo->prepare("INSERT INTO workerd_jobs (id, handler, vars) VALUES (?, 'welcome', ?)");
$insert->bindValue(1, $id, PDO::PARAM_LOB);
$insert->bindValue(2, json_encode(['name' => 'Ada']));
$insert->execute();
$pdo->commit();

$select = $pdo->prepare('SELECT status, payload FROM workerd_jobs WHERE id = ? ORDER BY attempt DESC LIMIT 1');
for ($tries = 0; $tries < 300; $tries++) {
    $select->bindValue(1, $id, PDO::PARAM_LOB);
    $select->execute();
    $row = $select->fetch(PDO::FETCH_ASSOC);
    if ($row['status'] === 'completed') {
        echo json_decode($row['payload']), "\n";
        exit(0);
    }
    usleep(100000);
}
fwrite(STDERR, "the job is {$row['status']}\n");
exit(1);
