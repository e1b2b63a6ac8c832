<?php
// A handler: the sum of the rows of a month.
$job = json_decode(stream_get_contents(STDIN), true, flags: JSON_THROW_ON_ERROR);
$status = fopen('php://fd/3', 'w');

if ($job['attempt'] === 1 && $argv[1] === 'busy') {
    fwrite($status, json_encode(['retry' => ['after' => 0.1, 'reason' => 'the bank is closed']]) . "\n");
    exit(0);
}

$sum = 0;
foreach ($job['vars']['rows'] as $number => $row) {
    $sum += $row;
    fwrite($status, json_encode(['progress' => ($number + 1) / count($job['vars']['rows'])]) . "\n");
}
fwrite(STDERR, "summed {$argv[1]}\n");
echo json_encode(['month' => $argv[1], 'sum' => $sum, 'attempt' => $job['attempt']]);
