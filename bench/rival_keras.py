"""The tutorial's script in Keras: 64 x 64, two rounds of convolution and pooling, 5 epochs. Prints accuracy on the test folder.

    python rival_keras.py FOLDER [SEED]

As in the tutorial, images come through ImageDataGenerator. After each epoch it measures on the folder ``val``, or on ``test``
where there is none.
"""

import sys
from pathlib import Path

import keras
from keras.src.legacy.preprocessing.image import ImageDataGenerator

EPOCHS, BATCH_SIZE, SIDE_PX = 5, 32, 64

folder = Path(sys.argv[1])
keras.utils.set_random_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
options = {"target_size": (SIDE_PX, SIDE_PX), "batch_size": BATCH_SIZE, "class_mode": "binary"}
augmented = ImageDataGenerator(rescale=1 / 255, zoom_range=0.2, horizontal_flip=True)
plain = ImageDataGenerator(rescale=1 / 255)
train = augmented.flow_from_directory(folder / "train", **options)
test = plain.flow_from_directory(folder / "test", shuffle=False, **options)
val = plain.flow_from_directory(folder / "val", **options) if (folder / "val").exists() else test
model = keras.Sequential(
    [
        keras.layers.Input((SIDE_PX, SIDE_PX, 3)),
        keras.layers.Conv2D(5, 3, activation="relu"),
        keras.layers.MaxPooling2D(2, 2),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(2, 2),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
model.fit(train, validation_data=val, epochs=EPOCHS, verbose=0)
print(round(model.evaluate(test, verbose=0)[1], 4))
